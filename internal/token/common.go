package token

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"sync"
	"time"

	"flashgate/internal/sale"
)

// The tokens that nearly all shoppers bring look alike: HS256, one of two headers, flat
// claims written plainly. To take such a token apart with a JSON library costs ten times
// its HMAC. So these are read here, by a parser that knows nothing else; whatever is not
// exactly so, or is wrong in any way, is left to golang-jwt, which alone refuses. That the
// two never disagree is fuzzed.

// commonHeaders are {"alg":"HS256","typ":"JWT"} and {"typ":"JWT","alg":"HS256"}, with the
// dot that follows.
var commonHeaders = [...][]byte{
	[]byte("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."),
	[]byte("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9."),
}

// macDigits is the length of an HMAC-SHA256 in base64.
const macDigits = 43

var strictBase64 = base64.RawURLEncoding.Strict()

// common verifies the tokens that look alike.
type common struct {
	scratch          sync.Pool // of *scratch
	issuer, audience string
	leeway           time.Duration
}

// scratch is the working memory of one verification.
type scratch struct {
	mac     hash.Hash // its two padded keys are hashed once
	sum     [sha256.Size]byte
	given   [sha256.Size]byte
	payload [MaxBytes]byte
}

func newCommon(o *Options) *common {
	c := &common{issuer: o.Issuer, audience: o.Audience, leeway: o.Leeway}
	secret := bytes.Clone(o.Secret)
	c.scratch.New = func() any { return &scratch{mac: hmac.New(sha256.New, secret)} }
	return c
}

// verify appends to user whose a token is, if it is one of those that look alike and is
// good now. ok false says nothing of the token.
func (c *common) verify(user, raw []byte, now time.Time) (_ []byte, expires time.Time, ok bool) {
	if len(raw) > MaxBytes {
		return nil, time.Time{}, false
	}
	header := 0
	for _, h := range commonHeaders {
		if bytes.HasPrefix(raw, h) {
			header = len(h)
		}
	}
	dot := len(raw) - macDigits - 1
	if header == 0 || dot <= header || raw[dot] != '.' {
		return nil, time.Time{}, false
	}
	s := c.scratch.Get().(*scratch)
	defer c.scratch.Put(s)
	if n, err := strictBase64.Decode(s.given[:], raw[dot+1:]); err != nil || n != sha256.Size {
		return nil, time.Time{}, false
	}
	s.mac.Reset()
	s.mac.Write(raw[:dot])
	if !hmac.Equal(s.mac.Sum(s.sum[:0]), s.given[:]) {
		return nil, time.Time{}, false
	}
	n, err := strictBase64.Decode(s.payload[:], raw[header:dot])
	if err != nil {
		return nil, time.Time{}, false
	}
	var claims plainClaims
	if !claims.parse(s.payload[:n]) || !c.good(&claims, now) {
		return nil, time.Time{}, false
	}
	if len(claims.sub) == 0 || len(claims.sub) > sale.MaxUserIDBytes { // of ASCII alone, as all that is plain
		return nil, time.Time{}, false
	}
	return append(user, claims.sub...), time.Unix(claims.exp, 0), true
}

// good checks what a signature does not tell.
func (c *common) good(p *plainClaims, now time.Time) bool {
	return p.exp > 0 && now.Before(time.Unix(p.exp, 0).Add(c.leeway)) &&
		!now.Before(time.Unix(p.nbf, 0).Add(-c.leeway)) && !now.Before(time.Unix(p.iat, 0).Add(-c.leeway)) &&
		(c.issuer == "" || string(p.iss) == c.issuer) && (c.audience == "" || string(p.aud) == c.audience)
}

// plainClaims are claims written plainly. nil and 0 are absent ones.
type plainClaims struct {
	sub, iss, aud []byte
	exp, nbf, iat int64 // Unix seconds
}

// parse reads one JSON object without blanks, whose values are strings without escapes
// and numbers of digits alone, and in which no claim that counts here comes twice. False:
// it is not so simple.
func (p *plainClaims) parse(b []byte) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return false
	}
	b = b[1:]
	for {
		name, rest, ok := plainString(b)
		if !ok || len(rest) == 0 || rest[0] != ':' {
			return false
		}
		if b, ok = p.claim(name, rest[1:]); !ok || len(b) == 0 {
			return false
		}
		if b[0] == '}' {
			return len(b) == 1
		}
		if b[0] != ',' {
			return false
		}
		b = b[1:]
	}
}

// claim reads one value.
func (p *plainClaims) claim(name, b []byte) (rest []byte, ok bool) {
	if len(b) > 0 && b[0] == '"' {
		text, rest, ok := plainString(b)
		if !ok {
			return nil, false
		}
		var to *[]byte
		switch string(name) {
		case "sub":
			to = &p.sub
		case "iss":
			to = &p.iss
		case "aud":
			to = &p.aud
		case "exp", "nbf", "iat":
			return nil, false // of the wrong type
		default:
			return rest, true
		}
		if *to != nil || len(text) == 0 {
			return nil, false
		}
		*to = text
		return rest, true
	}
	n, rest, ok := plainNumber(b)
	if !ok {
		return nil, false
	}
	var to *int64
	switch string(name) {
	case "exp":
		to = &p.exp
	case "nbf":
		to = &p.nbf
	case "iat":
		to = &p.iat
	case "sub", "iss", "aud":
		return nil, false
	default:
		return rest, true
	}
	if *to != 0 || n == 0 || n > maxSeconds {
		return nil, false
	}
	*to = n
	return rest, true
}

// plainString reads a JSON string of ASCII that needs no escape.
func plainString(b []byte) (text, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return b[1:i], b[i+1:], true
		case c < 0x20 || c >= 0x7f || c == '\\':
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// plainDigitsMax is how many digits a float64, as which JSON numbers are read, holds.
const plainDigitsMax = 15

// plainNumber reads a whole number that is not below 0.
func plainNumber(b []byte) (n int64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && i <= plainDigitsMax && b[i] >= '0' && b[i] <= '9'; i++ {
		n = n*10 + int64(b[i]-'0')
	}
	if i == 0 || i > plainDigitsMax || b[0] == '0' && i > 1 {
		return 0, nil, false
	}
	return n, b[i:], true // what follows has to be , or }
}
