package rig

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"
)

// Requests of RocketMQ's remoting protocol that ask a server how it is, and one that
// sends to it.
// From org.apache.rocketmq.remoting.protocol.RequestCode.
const (
	codeSendMessage       = 10
	codeConsumerOffset    = 14
	codeBrokerRuntimeInfo = 28
	codeMaxOffset         = 30
	codeBrokerClusterInfo = 106

	codeOffsetNotFound = 22 // an answer's: the group has never consumed from the queue
)

const (
	remotingTimeoutSeconds = 3
	// remotingMaxBytes bounds an answer; a broker's runtime info is about 5 KB.
	remotingMaxBytes = 1 << 20
)

type remotingHeader struct {
	Code     int    `json:"code"`
	Flag     int    `json:"flag"`
	Language string `json:"language"`
	Opaque   int    `json:"opaque"`
	Version  int    `json:"version"`
	Remark   string `json:"remark,omitempty"`

	ExtFields map[string]string `json:"extFields,omitempty"`
}

// remotingCall sends one request without fields or body and returns the answer's body.
func remotingCall(ctx context.Context, addr string, code int) ([]byte, error) {
	_, body, err := remotingExchange(ctx, addr, code, nil, nil)
	return body, err
}

// remotingExchange sends one request and returns the answer's fields and body. The
// client library has no such call, and an admin of its kind in this process
// would get in the way of transaction producers.
func remotingExchange(ctx context.Context, addr string, code int, fields map[string]string, body []byte) (map[string]string, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, remotingTimeoutSeconds*time.Second)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, nil, err
	}

	header, err := json.Marshal(remotingHeader{Code: code, Language: "GO", Opaque: 1, ExtFields: fields})
	if err != nil {
		return nil, nil, err
	}
	// A frame: length of all that follows, length of the header, header, body.
	frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(header)+len(body)))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(header)))
	frame = append(append(frame, header...), body...)
	if _, err := conn.Write(frame); err != nil {
		return nil, nil, err
	}

	var lengths [8]byte
	if _, err := io.ReadFull(conn, lengths[:]); err != nil {
		return nil, nil, fmt.Errorf("%s does not answer: %w", addr, err)
	}
	// The header length's first byte tells its encoding: 0 is JSON.
	size, headerSize := binary.BigEndian.Uint32(lengths[:4]), binary.BigEndian.Uint32(lengths[4:])
	if size < 4 || size > remotingMaxBytes || headerSize > size-4 {
		return nil, nil, fmt.Errorf("%s does not speak RocketMQ's protocol", addr)
	}
	answer := make([]byte, size-4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, nil, fmt.Errorf("%s broke off its answer: %w", addr, err)
	}
	var got remotingHeader
	if err := json.Unmarshal(answer[:headerSize], &got); err != nil {
		return nil, nil, fmt.Errorf("%s: malformed answer: %w", addr, err)
	}
	if got.Code != 0 {
		return nil, nil, &remotingError{addr, code, got.Code, got.Remark}
	}
	return got.ExtFields, answer[headerSize:], nil
}

// remotingError is an answer that refuses.
type remotingError struct {
	addr    string
	request int
	code    int
	remark  string
}

func (e *remotingError) Error() string {
	return fmt.Sprintf("%s refuses request %d with code %d: %s", e.addr, e.request, e.code, e.remark)
}
