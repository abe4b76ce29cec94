// Package ticket makes and checks purchase tickets: short-lived proofs that a shopper
// asked for one after the sale had begun, without which, if the limits say so, nothing
// is bought. A ticket is bound to a user and a sale and is known by its signature alone:
// any gateway with the key takes it, and nothing is stored.
package ticket

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"sync"
	"time"

	"flashgate/internal/sale"
)

const (
	expiryBytes = 8  // Unix ms, big-endian
	macBytes    = 16 // of HMAC-SHA256: no one guesses 128 bits within a ticket's life
	rawBytes    = expiryBytes + macBytes

	// Bytes is the length of a ticket's text.
	Bytes = (rawBytes*8 + 5) / 6

	// minKeyBytes is what HMAC-SHA256 wants (RFC 2104 §3: no less than its output).
	minKeyBytes = 32
)

// purpose keeps a signature of another kind, made with the same key, from being a ticket.
const purpose = "flashgate purchase ticket 1"

// Issuer makes and checks tickets with one key. All methods may be called at once.
type Issuer struct {
	signers sync.Pool
}

// signer is an HMAC with its scratch: making one costs more than using it.
type signer struct {
	mac hash.Hash
	sum [sha256.Size]byte
	buf [rawBytes]byte
}

// NewIssuer makes an Issuer with the key, which must have 32 bytes or more.
func NewIssuer(key []byte) (*Issuer, error) {
	if len(key) < minKeyBytes {
		return nil, errors.New("ticket: the key has fewer than 32 bytes")
	}
	key = append([]byte(nil), key...)
	i := &Issuer{}
	i.signers.New = func() any { return &signer{mac: hmac.New(sha256.New, key)} }
	return i, nil
}

// Issue makes a ticket for a user and a sale that is good before expires, to the
// millisecond. It is text of base64url characters.
func (i *Issuer) Issue(user []byte, saleID string, expires time.Time) string {
	s := i.signers.Get().(*signer)
	defer i.signers.Put(s)
	binary.BigEndian.PutUint64(s.buf[:], uint64(expires.UnixMilli()))
	copy(s.buf[expiryBytes:], s.sign(user, saleID))
	return base64.RawURLEncoding.EncodeToString(s.buf[:])
}

var (
	errMissing = &sale.Error{Code: sale.CodeTicket, Detail: "this sale wants a ticket: POST /v1/sales/{id}/ticket, and send it as Purchase-Ticket"}
	errForged  = &sale.Error{Code: sale.CodeTicket, Detail: "the ticket is not of this user and sale: ask for another"}
	errExpired = &sale.Error{Code: sale.CodeTicket, Detail: "the ticket has expired: ask for another"}
)

// Check says whether a ticket is good for a user and a sale at now. Its errors are
// sale.Error TICKET_REQUIRED. It allocates nothing.
func (i *Issuer) Check(ticket, user []byte, saleID string, now time.Time) error {
	if len(ticket) == 0 {
		return errMissing
	}
	if len(ticket) != Bytes {
		return errForged
	}
	s := i.signers.Get().(*signer)
	defer i.signers.Put(s)
	var given [rawBytes]byte
	if n, err := base64.RawURLEncoding.Decode(given[:], ticket); err != nil || n != rawBytes {
		return errForged
	}
	copy(s.buf[:expiryBytes], given[:expiryBytes])
	if !hmac.Equal(s.sign(user, saleID), given[expiryBytes:]) {
		return errForged
	}
	if now.UnixMilli() >= int64(binary.BigEndian.Uint64(given[:])) {
		return errExpired
	}
	return nil
}

// sign signs the expiry that s.buf begins with; the result is s's own. The lengths go
// before the names, so that no two pairs of them sign alike. A hash takes everything: its
// Write returns no error.
func (s *signer) sign(user []byte, saleID string) []byte {
	s.mac.Reset()
	s.write(purpose)
	_, _ = s.mac.Write(append(s.sum[:0], byte(len(user)), byte(len(saleID))))
	_, _ = s.mac.Write(user)
	s.write(saleID)
	_, _ = s.mac.Write(s.buf[:expiryBytes])
	return s.mac.Sum(s.sum[:0])[:macBytes]
}

// write feeds text through sum, which is free until the end: a conversion to bytes
// would be an allocation.
func (s *signer) write(text string) {
	for len(text) > 0 {
		n := copy(s.sum[:], text)
		_, _ = s.mac.Write(s.sum[:n])
		text = text[n:]
	}
}
