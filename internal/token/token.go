// Package token verifies shoppers' JSON Web Tokens, and issues them for tests and
// demos.
package token

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/maypok86/otter/v2"

	"flashgate/internal/sale"
)

const (
	// MaxBytes is the longest token looked at. A useful one has a few hundred bytes;
	// an RS256 one of an identity provider seldom passes 2,000.
	MaxBytes = 4096
	// maxSeconds is the last second of the year 9999. Far beyond it a number of seconds
	// no longer fits into 64 bits, and jwt would read the far future as the far past.
	maxSeconds = 253402300799
	// minRSABits is the least that is not considered broken (NIST SP 800-131A).
	minRSABits = 2048
)

// Options say which tokens are good. Either Secret or PublicKeys is set, not both: a
// verifier that takes both could be made to check an HMAC against a public key.
type Options struct {
	Secret       []byte             // HS256: the key, as it is
	PublicKeys   []crypto.PublicKey // ed25519.PublicKey (EdDSA) or *rsa.PublicKey (RS256); any may have signed
	Issuer       string             // wanted in iss; "" = any
	Audience     string             // wanted in aud; "" = any
	Leeway       time.Duration      // for exp, nbf and iat: how far clocks may be apart
	CacheEntries int                // verified tokens remembered; 0 = none
	Now          func() time.Time   // nil = time.Now
}

// Verifier verifies tokens. Its methods may be called at once.
type Verifier struct {
	common *common // nil = the tokens are of public keys
	parser *jwt.Parser
	keys   map[string]any // by algorithm, what jwt's Keyfunc returns
	leeway time.Duration
	now    func() time.Time
	cache  *otter.Cache[[sha256.Size]byte, verified] // nil = none
}

// verified is what is remembered of a good token, under the SHA-256 of its every byte:
// another token does not have that digest, and the digest gives no token away.
type verified struct {
	user    string
	expires time.Time
}

// NewVerifier checks o and makes a Verifier.
func NewVerifier(o Options) (*Verifier, error) {
	v := &Verifier{leeway: o.Leeway, now: o.Now, keys: map[string]any{}}
	if v.now == nil {
		v.now = time.Now
	}
	switch {
	case len(o.Secret) > 0 && len(o.PublicKeys) > 0:
		return nil, errors.New("a secret and public keys: want one or the other")
	case len(o.Secret) > 0:
		v.keys[jwt.SigningMethodHS256.Alg()] = o.Secret
		v.common = newCommon(&o)
	case len(o.PublicKeys) == 0:
		return nil, errors.New("neither a secret nor a public key to verify tokens with")
	}
	sets := map[string]jwt.VerificationKeySet{}
	for i, key := range o.PublicKeys {
		var alg string
		switch k := key.(type) {
		case ed25519.PublicKey:
			if len(k) != ed25519.PublicKeySize {
				return nil, fmt.Errorf("public key %d: %d bytes are no Ed25519 key", i+1, len(k))
			}
			alg = jwt.SigningMethodEdDSA.Alg()
		case *rsa.PublicKey:
			if bits := k.N.BitLen(); bits < minRSABits {
				return nil, fmt.Errorf("public key %d: RSA of %d bits: want %d or more", i+1, bits, minRSABits)
			}
			alg = jwt.SigningMethodRS256.Alg()
		default:
			return nil, fmt.Errorf("public key %d: %T: want an Ed25519 or an RSA public key", i+1, key)
		}
		set := sets[alg]
		set.Keys = append(set.Keys, key)
		sets[alg] = set
	}
	for alg, set := range sets {
		v.keys[alg] = set
	}
	options := []jwt.ParserOption{
		jwt.WithValidMethods(v.algorithms()),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(o.Leeway),
		jwt.WithTimeFunc(v.now),
		jwt.WithStrictDecoding(),
	}
	if o.Issuer != "" {
		options = append(options, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		options = append(options, jwt.WithAudience(o.Audience))
	}
	v.parser = jwt.NewParser(options...)
	if o.CacheEntries > 0 {
		cache, err := otter.New(&otter.Options[[sha256.Size]byte, verified]{MaximumSize: o.CacheEntries})
		if err != nil {
			return nil, fmt.Errorf("token cache: %w", err)
		}
		v.cache = cache
	}
	return v, nil
}

func (v *Verifier) algorithms() []string {
	out := make([]string, 0, len(v.keys))
	for alg := range v.keys {
		out = append(out, alg)
	}
	return out
}

// Verify appends the token's sub, verbatim, to user, and returns that and when the token
// expires. raw is not kept. Any failure is a *sale.Error UNAUTHENTICATED whose detail may
// be shown.
func (v *Verifier) Verify(user, raw []byte) (_ []byte, expires time.Time, err error) {
	if len(raw) > MaxBytes {
		return nil, time.Time{}, errTooLong
	}
	// A token that looks like all the others costs hardly more than to find it among the
	// remembered ones, and less than to remember it: which most are not worth, that come once.
	if v.common != nil {
		if user, expires, ok := v.common.verify(user, raw, v.now()); ok {
			return user, expires, nil
		}
	}
	if v.cache == nil {
		sub, expires, err := v.verify(raw)
		return append(user, sub...), expires, err
	}
	digest := sha256.Sum256(raw)
	if known, ok := v.cache.GetIfPresent(digest); ok {
		if v.now().Before(known.expires.Add(v.leeway)) {
			return append(user, known.user...), known.expires, nil
		}
		v.cache.Invalidate(digest)
		return nil, time.Time{}, errExpired
	}
	sub, expires, err := v.verify(raw)
	if err == nil {
		v.cache.Set(digest, verified{sub, expires})
	}
	return append(user, sub...), expires, err
}

func (v *Verifier) verify(raw []byte) (user string, expires time.Time, err error) {
	// MapClaims, not a struct: names in it are exact, where encoding/json would take
	// "SUB" for "sub".
	claims := jwt.MapClaims{}
	if parsed, err := v.parser.ParseWithClaims(string(raw), claims, v.key); err != nil {
		if parsed != nil && parsed.Method != nil && v.keys[parsed.Method.Alg()] == nil {
			return "", time.Time{}, errAlgorithm
		}
		return "", time.Time{}, refusal(err)
	}
	user, ok := claims["sub"].(string)
	if !ok || !validUser(user) {
		return "", time.Time{}, errSubject
	}
	for _, name := range []string{"exp", "nbf", "iat"} {
		if seconds, ok := claims[name].(float64); ok && math.Abs(seconds) > maxSeconds {
			return "", time.Time{}, errClaims
		}
	}
	exp, err := claims.GetExpirationTime()
	if err != nil || exp == nil {
		return "", time.Time{}, errClaims
	}
	return user, exp.Time, nil
}

// validUser reports whether a sub can name a user. encoding/json reads bytes that are no
// UTF-8, and halves of surrogate pairs, as U+FFFD: taken for a name, it would make one
// user of many.
func validUser(sub string) bool {
	return sub != "" && len(sub) <= sale.MaxUserIDBytes && utf8.ValidString(sub) && !strings.ContainsRune(sub, utf8.RuneError)
}

// key is what the signature of t is checked with. The parser has refused every
// algorithm that has no key here; a key is only ever used with its own.
func (v *Verifier) key(t *jwt.Token) (any, error) {
	if _, ok := t.Header["crit"]; ok {
		return nil, errCritical // RFC 7515 §4.1.11: what must be understood, and is not
	}
	return v.keys[t.Method.Alg()], nil
}

func unauthenticated(detail string) *sale.Error {
	return &sale.Error{Code: sale.CodeUnauthenticated, Detail: detail}
}

// What can be wrong with a token, in words that tell a shopper's client what to mend
// and a forger nothing.
var (
	errTooLong   = unauthenticated(fmt.Sprintf("the token is longer than %d bytes", MaxBytes))
	errExpired   = unauthenticated("the token has expired")
	errNotYet    = unauthenticated("the token is not valid yet (nbf or iat is in the future)")
	errClaims    = unauthenticated("the token lacks a claim that is wanted here, or has one of the wrong type (exp, nbf, iat, iss, aud)")
	errIssuer    = unauthenticated("the token is of another issuer (iss)")
	errAudience  = unauthenticated("the token is for another audience (aud)")
	errSubject   = unauthenticated(fmt.Sprintf("the token's sub must be a string of 1–%d bytes of UTF-8", sale.MaxUserIDBytes))
	errSignature = unauthenticated("the token's signature does not verify")
	errMalformed = unauthenticated("the token is malformed: want a JSON Web Token in compact form")
	errCritical  = unauthenticated("the token has critical headers (crit), none of which is known here")
	errAlgorithm = unauthenticated("the token's algorithm (alg) is not taken here")
)

// refusal turns jwt's error into ours. A token may be wrong in several ways: the
// signature comes first, for nothing else in the token means anything without it.
func refusal(err error) *sale.Error {
	var own *sale.Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, jwt.ErrTokenMalformed):
		return errMalformed
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return errAlgorithm
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return errSignature
	case errors.Is(err, jwt.ErrTokenExpired):
		return errExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return errNotYet
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return errIssuer
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return errAudience
	default:
		return errClaims
	}
}
