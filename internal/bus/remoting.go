package bus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// RocketMQ's remoting protocol, as far as routes, topics and reading past the consumers
// need it. The client library has these calls too, but ignores response codes and the
// caller's deadline.
//
// A frame is: its length (4 bytes, without itself), the header's length (4 bytes, the
// first of which names the header's coding, 0 = JSON), header, body.
const (
	requestPull           = 11
	requestGroupOffset    = 14
	requestCreateTopic    = 17
	requestMaxOffset      = 30
	requestMinOffset      = 31
	requestRoute          = 105
	requestClusterInfo    = 106
	responseSuccess       = 0
	responseNoSuchTopic   = 17
	responsePullNotFound  = 19
	responsePullAgain     = 20
	responsePullMoved     = 21
	responseNoGroupOffset = 22

	// Any topic's route, and a cluster's brokers, fit many times over.
	maxFrameBytes = 16 << 20
	// For a call without a deadline of its own.
	remotingTimeoutMillis = 5_000

	permReadWrite = 6
	masterID      = "0"
)

var (
	errNoRoute  = errors.New("bus: topic has no route (flashgate migrate creates it)")
	errNoBroker = errors.New("bus: no broker has registered with the name server")
)

type remotingHeader struct {
	Code      int               `json:"code"`
	Language  string            `json:"language"`
	Version   int               `json:"version"`
	Opaque    int               `json:"opaque"`
	Flag      int               `json:"flag"`
	Remark    string            `json:"remark"`
	ExtFields map[string]string `json:"extFields"`
}

// call makes one request on a connection of its own. A response code other than
// success is a *responseError.
func call(ctx context.Context, address string, code int, fields map[string]string) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, remotingTimeoutMillis*time.Millisecond)
	defer cancel()
	l, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer l.close()
	_, body, err = l.ask(ctx, code, fields)
	return body, err
}

// line is a connection to one server, for requests one after the other. After an error
// other than a *responseError it is of no use any more.
type line struct {
	address    string
	connection net.Conn
}

func dial(ctx context.Context, address string) (*line, error) {
	ctx, cancel := context.WithTimeout(ctx, remotingTimeoutMillis*time.Millisecond)
	defer cancel()
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("RocketMQ at %s: %w", address, err)
	}
	return &line{address, connection}, nil
}

func (l *line) close() { _ = l.connection.Close() }

// ask makes one request, and returns the answer's fields and body. Its header comes with
// a code other than success, too.
func (l *line) ask(ctx context.Context, code int, fields map[string]string) (answered map[string]string, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, remotingTimeoutMillis*time.Millisecond)
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = l.connection.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	answer, body, err := l.exchange(code, fields)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("RocketMQ at %s: %w", l.address, err)
	case answer.Code != responseSuccess:
		return answer.ExtFields, nil, &responseError{address: l.address, code: answer.Code, remark: answer.Remark}
	}
	return answer.ExtFields, body, nil
}

func (l *line) exchange(code int, fields map[string]string) (answer remotingHeader, body []byte, err error) {
	// 317 is the version the Go client speaks as.
	header, err := json.Marshal(remotingHeader{Code: code, Language: "GO", Version: 317, ExtFields: fields})
	if err != nil {
		return answer, nil, err
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(header)))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(header)))
	if _, err := l.connection.Write(append(frame, header...)); err != nil {
		return answer, nil, err
	}
	var lengths [8]byte
	if _, err := io.ReadFull(l.connection, lengths[:]); err != nil {
		return answer, nil, err
	}
	total, headerLength := binary.BigEndian.Uint32(lengths[:4]), binary.BigEndian.Uint32(lengths[4:])
	if coding := headerLength >> 24; coding != 0 {
		return answer, nil, fmt.Errorf("answer's header has coding %d, want JSON", coding)
	}
	if total > maxFrameBytes || headerLength > total-4 || total < 4 {
		return answer, nil, fmt.Errorf("answer of %d bytes with a header of %d", total, headerLength)
	}
	rest := make([]byte, total-4)
	if _, err := io.ReadFull(l.connection, rest); err != nil {
		return answer, nil, err
	}
	if err := json.Unmarshal(rest[:headerLength], &answer); err != nil {
		return answer, nil, fmt.Errorf("answer's header: %w", err)
	}
	return answer, rest[headerLength:], nil
}

// responseError is an answer that is no success.
type responseError struct {
	address string
	code    int
	remark  string
}

func (e *responseError) Error() string {
	return fmt.Sprintf("RocketMQ at %s answers code %d: %s", e.address, e.code, e.remark)
}

// route is where a topic's queues are.
type route struct {
	Queues []struct {
		BrokerName  string `json:"brokerName"`
		ReadQueues  int    `json:"readQueueNums"`
		WriteQueues int    `json:"writeQueueNums"`
	} `json:"queueDatas"`
	Brokers []broker `json:"brokerDatas"`
}

type broker struct {
	Name      string            `json:"brokerName"`
	Addresses map[string]string `json:"brokerAddrs"` // by broker id; masterID is the master
}

// bareKey is an object's key without quotes: the name server writes broker ids so.
var bareKey = regexp.MustCompile(`([{,])(\d+):`)

func unmarshalLoose(body []byte, into any) error {
	return json.Unmarshal(bareKey.ReplaceAll(body, []byte(`$1"$2":`)), into)
}

// anyNameServer makes a request of the first name server that answers it.
func anyNameServer(ctx context.Context, nameServers []string, code int, fields map[string]string) ([]byte, error) {
	if len(nameServers) == 0 {
		return nil, errors.New("bus: no name server given")
	}
	var failures []error
	for _, address := range nameServers {
		body, err := call(ctx, address, code, fields)
		var response *responseError
		if err == nil || errors.As(err, &response) {
			return body, err
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// routeOf asks for a topic's route; errNoRoute when there is none.
func routeOf(ctx context.Context, nameServers []string, topic string) (*route, error) {
	body, err := anyNameServer(ctx, nameServers, requestRoute, map[string]string{"topic": topic})
	var response *responseError
	if errors.As(err, &response) && response.code == responseNoSuchTopic {
		return nil, fmt.Errorf("%w: %s", errNoRoute, topic)
	}
	if err != nil {
		return nil, err
	}
	r := new(route)
	if err := unmarshalLoose(body, r); err != nil {
		return nil, fmt.Errorf("route of %s: %w", topic, err)
	}
	return r, nil
}

// masters lists the cluster's brokers that have a master, by name.
func masters(ctx context.Context, nameServers []string) (map[string]string, error) {
	body, err := anyNameServer(ctx, nameServers, requestClusterInfo, nil)
	if err != nil {
		return nil, err
	}
	var cluster struct {
		Brokers map[string]broker `json:"brokerAddrTable"`
	}
	if err := unmarshalLoose(body, &cluster); err != nil {
		return nil, fmt.Errorf("cluster's brokers: %w", err)
	}
	addresses := make(map[string]string, len(cluster.Brokers))
	for name, b := range cluster.Brokers {
		if address := b.Addresses[masterID]; address != "" {
			addresses[name] = address
		}
	}
	if len(addresses) == 0 {
		return nil, errNoBroker
	}
	return addresses, nil
}

// ping reaches a name server, finds the topic's route, and asks the master of each
// of its queues' brokers about it until one answers.
func ping(ctx context.Context, nameServers []string, topic string) error {
	r, err := routeOf(ctx, nameServers, topic)
	if err != nil {
		return err
	}
	failures := []error{fmt.Errorf("no broker of topic %s answers", topic)}
	for _, b := range r.Brokers {
		address := b.Addresses[masterID]
		if address == "" {
			continue
		}
		_, err := call(ctx, address, requestMaxOffset, map[string]string{"topic": topic, "queueId": "0"})
		if err == nil {
			return nil
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// createTopic creates the topic on one broker, or changes its number of queues.
func createTopic(ctx context.Context, address, topic string, queues int) error {
	_, err := call(ctx, address, requestCreateTopic, map[string]string{
		"topic":           topic,
		"defaultTopic":    "TBW102", // required by the protocol, and not used
		"readQueueNums":   strconv.Itoa(queues),
		"writeQueueNums":  strconv.Itoa(queues),
		"perm":            strconv.Itoa(permReadWrite),
		"topicFilterType": "SINGLE_TAG",
		"topicSysFlag":    "0",
		"order":           "false",
	})
	return err
}

// nameServers resolves the name servers' host names for the client, which takes IPs
// only and asks again every 2 minutes. When a look-up fails, what is known stays.
type nameServers struct {
	hosts []string
	known chan []string // one value: the last addresses
}

func newNameServers(hosts []string) *nameServers {
	n := &nameServers{hosts: hosts, known: make(chan []string, 1)}
	n.known <- nil
	return n
}

// Resolve implements the client's NsResolver.
func (n *nameServers) Resolve() []string {
	ctx, cancel := context.WithTimeout(context.Background(), remotingTimeoutMillis*time.Millisecond)
	defer cancel()
	known := <-n.known
	if addresses := resolve(ctx, n.hosts); len(addresses) > 0 {
		known = addresses
	}
	n.known <- known
	return known
}

// Description implements the client's NsResolver.
func (n *nameServers) Description() string { return strings.Join(n.hosts, ";") }

func resolve(ctx context.Context, hosts []string) []string {
	var addresses []string
	for _, host := range hosts {
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			continue
		}
		found, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil || len(found) == 0 {
			continue
		}
		addresses = append(addresses, net.JoinHostPort(preferIPv4(found), port))
	}
	return addresses
}

// preferIPv4 picks an address: brokers listen on IPv4 unless told otherwise.
func preferIPv4(addresses []string) string {
	for _, a := range addresses {
		if net.ParseIP(a).To4() != nil {
			return a
		}
	}
	return addresses[0]
}
