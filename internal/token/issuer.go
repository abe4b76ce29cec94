package token

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"flashgate/internal/sale"
)

// Issuer makes HS256 tokens that a Verifier with the same secret takes.
type Issuer struct {
	secret           []byte
	issuer, audience string
}

// NewIssuer makes an Issuer; issuer and audience go into iss and aud unless "".
func NewIssuer(secret []byte, issuer, audience string) (*Issuer, error) {
	if len(secret) == 0 {
		return nil, errors.New("no secret to sign tokens with")
	}
	return &Issuer{secret, issuer, audience}, nil
}

// Issue makes a token for user (1–64 bytes of UTF-8) that expires ttl from now, to the second.
func (i *Issuer) Issue(user string, ttl time.Duration) (string, error) {
	if !validUser(user) {
		return "", fmt.Errorf("user of %d bytes: want 1–%d of UTF-8", len(user), sale.MaxUserIDBytes)
	}
	if ttl < time.Second {
		return "", fmt.Errorf("a token that lives %s: want 1s or more", ttl)
	}
	now := time.Now()
	claims := jwt.RegisteredClaims{
		Subject:   user,
		Issuer:    i.issuer,
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
	}
	if i.audience != "" {
		claims.Audience = jwt.ClaimStrings{i.audience}
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(i.secret)
}
