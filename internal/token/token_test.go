package token_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
	"flashgate/internal/token"
)

var secret = []byte("a secret of the tests, of more than 32 bytes")

// keys are made once: an RSA key takes a while.
var keys = sync.OnceValue(func() (k struct {
	ed  ed25519.PrivateKey
	rsa *rsa.PrivateKey
}) {
	var err error
	if _, k.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		panic(err)
	}
	if k.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		panic(err)
	}
	return k
})

func verifier(t testing.TB, o token.Options) *token.Verifier {
	t.Helper()
	v, err := token.NewVerifier(o)
	require.NoError(t, err)
	return v
}

func sign(t testing.TB, m jwt.SigningMethod, key any, c jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(m, c).SignedString(key)
	require.NoError(t, err)
	return s
}

// good are claims that pass, changed by the pairs given; a nil value takes one out.
func good(pairs ...any) jwt.MapClaims {
	c := jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for i := 0; i < len(pairs); i += 2 {
		if name := pairs[i].(string); pairs[i+1] == nil {
			delete(c, name)
		} else {
			c[name] = pairs[i+1]
		}
	}
	return c
}

func TestVerify(t *testing.T) {
	now := time.Now()
	plain := token.Options{Secret: secret}
	scoped := token.Options{Secret: secret, Issuer: "us", Audience: "shop", Leeway: 5 * time.Second}
	for _, tc := range []struct {
		name   string
		o      token.Options
		claims jwt.MapClaims
		detail string // part of the refusal; "" = accepted
	}{
		{"plain", plain, good(), ""},
		{"sub of 64 bytes", plain, good("sub", strings.Repeat("u", 64)), ""},
		{"sub of 65 bytes", plain, good("sub", strings.Repeat("u", 65)), "sub"},
		{"sub of 22 runes and 66 bytes", plain, good("sub", strings.Repeat("界", 22)), "sub"},
		{"no sub", plain, good("sub", nil), "sub"},
		{"empty sub", plain, good("sub", ""), "sub"},
		{"sub a number", plain, good("sub", 7), "sub"},
		{"sub a list", plain, good("sub", []string{"alice"}), "sub"},
		{"SUB is not sub", plain, good("sub", nil, "SUB", "alice"), "sub"},
		{"SUB beside sub", plain, good("SUB", "mallory"), ""},
		{"no exp", plain, good("exp", nil), "exp"},
		{"exp 0", plain, good("exp", 0), "exp"},
		{"exp text", plain, good("exp", "tomorrow"), "exp"},
		{"expired", plain, good("exp", now.Add(-time.Second).Unix()), "expired"},
		{"expired within the leeway", scoped, good("exp", now.Add(-2*time.Second).Unix(), "iss", "us", "aud", "shop"), ""},
		{"expired past the leeway", scoped, good("exp", now.Add(-7*time.Second).Unix(), "iss", "us", "aud", "shop"), "expired"},
		{"not yet", plain, good("nbf", now.Add(time.Minute).Unix()), "not valid yet"},
		{"nbf within the leeway", scoped, good("nbf", now.Add(2*time.Second).Unix(), "iss", "us", "aud", "shop"), ""},
		{"issued in the future", plain, good("iat", now.Add(time.Minute).Unix()), "not valid yet"},
		{"of its issuer", scoped, good("iss", "us", "aud", []string{"other", "shop"}), ""},
		{"of another issuer", scoped, good("iss", "them", "aud", "shop"), "(iss)"},
		{"no issuer", scoped, good("aud", "shop"), "iss"},
		{"for another audience", scoped, good("iss", "us", "aud", "bank"), "(aud)"},
		{"no audience", scoped, good("iss", "us"), "aud"},
		{"issuer not asked for", plain, good("iss", "anyone"), ""},
	} {
		for _, cache := range []int{0, 100} {
			t.Run(tc.name, func(t *testing.T) {
				tc.o.CacheEntries = cache
				v, raw := verifier(t, tc.o), sign(t, jwt.SigningMethodHS256, secret, tc.claims)
				for range 2 { // the second may come from the cache
					user, expires, err := token.UserOf(v, []byte(raw))
					if tc.detail != "" {
						refused(t, err, tc.detail)
						require.Empty(t, user)
						continue
					}
					require.NoError(t, err)
					require.Equal(t, tc.claims["sub"], user)
					require.Equal(t, tc.claims["exp"], expires.Unix())
				}
			})
		}
	}
}

func refused(t *testing.T, err error, detail string) {
	t.Helper()
	require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, detail)
}

func TestPublicKeys(t *testing.T) {
	k := keys()
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	v := verifier(t, token.Options{PublicKeys: []crypto.PublicKey{stranger.Public(), k.ed.Public(), k.rsa.Public()}})
	for _, raw := range []string{
		sign(t, jwt.SigningMethodEdDSA, k.ed, good()),
		sign(t, jwt.SigningMethodRS256, k.rsa, good()),
	} {
		user, _, err := token.UserOf(v, []byte(raw))
		require.NoError(t, err)
		require.Equal(t, "alice", user)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	_, _, err = token.UserOf(v, []byte(sign(t, jwt.SigningMethodEdDSA, other, good())))
	refused(t, err, "signature")
	_, _, err = token.UserOf(v, []byte(sign(t, jwt.SigningMethodRS512, k.rsa, good())))
	refused(t, err, "alg")
}

// The attacks on what a verifier believes the token's own header about.
func TestAlgorithmConfusion(t *testing.T) {
	k := keys()
	der, err := x509.MarshalPKIXPublicKey(k.rsa.Public())
	require.NoError(t, err)
	public := verifier(t, token.Options{PublicKeys: []crypto.PublicKey{k.rsa.Public(), k.ed.Public()}})
	shared := verifier(t, token.Options{Secret: secret})
	none := sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good())
	for _, tc := range []struct {
		name string
		v    *token.Verifier
		raw  string
	}{
		{"none, shared", shared, none},
		{"none, public", public, none},
		{"HS256 keyed with the public key's PEM", public, sign(t, jwt.SigningMethodHS256,
			pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), good())},
		{"HS256 keyed with the public key's DER", public, sign(t, jwt.SigningMethodHS256, der, good())},
		{"HS256 keyed with the Ed25519 key", public, sign(t, jwt.SigningMethodHS256, []byte(k.ed.Public().(ed25519.PublicKey)), good())},
		{"HS512 with the secret", shared, sign(t, jwt.SigningMethodHS512, secret, good())},
		{"RS256 at a shared secret", shared, sign(t, jwt.SigningMethodRS256, k.rsa, good())},
		{"EdDSA at a shared secret", shared, sign(t, jwt.SigningMethodEdDSA, k.ed, good())},
		{"PS256", public, sign(t, jwt.SigningMethodPS256, k.rsa, good())},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := token.UserOf(tc.v, []byte(tc.raw))
			refused(t, err, "alg")
		})
	}
	for _, alg := range []string{"None", "nOnE", "", "hs256", "HS256 "} {
		forged := encode(`{"alg":"`+alg+`","typ":"JWT"}`) + none[strings.IndexByte(none, '.'):]
		_, _, err := token.UserOf(shared, []byte(forged))
		require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err), alg)
	}
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestMalformed(t *testing.T) {
	v := verifier(t, token.Options{Secret: secret, CacheEntries: 10})
	fine := sign(t, jwt.SigningMethodHS256, secret, good())
	parts := strings.Split(fine, ".")
	critical := jwt.NewWithClaims(jwt.SigningMethodHS256, good())
	critical.Header["crit"] = []string{"exp"}
	signedCritical, err := critical.SignedString(secret)
	require.NoError(t, err)
	for name, tc := range map[string][2]string{
		"empty":           {"", "malformed"},
		"dots":            {"..", "malformed"},
		"four parts":      {fine + ".x", "malformed"},
		"no signature":    {parts[0] + "." + parts[1] + ".", "signature"},
		"padded":          {fine + "==", "malformed"},
		"not base64":      {"!!." + parts[1] + "." + parts[2], "malformed"},
		"claims no JSON":  {parts[0] + "." + encode("sub") + "." + parts[2], "malformed"},
		"other claims":    {parts[0] + "." + encode(`{"sub":"bob","exp":9999999999}`) + "." + parts[2], "signature"},
		"critical header": {signedCritical, "crit"},
		"just too long":   {strings.Repeat("x", token.MaxBytes+1), "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := token.UserOf(v, []byte(tc[0]))
			refused(t, err, tc[1])
		})
	}
	// The last of 43 base64 digits holds 4 bits of 256, and 2 that must be 0: a token has
	// one spelling.
	last := fine[len(fine)-1]
	for _, digit := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		if byte(digit) == last {
			continue
		}
		_, _, err = token.UserOf(v, []byte(fine[:len(fine)-1]+string(digit)))
		require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err), "%c for %c", digit, last)
	}

	long := sign(t, jwt.SigningMethodHS256, secret, good("pad", strings.Repeat("x", token.MaxBytes)))
	_, _, err = token.UserOf(v, []byte(long))
	refused(t, err, "longer")
}

// A token is no longer good than its exp, remembered or not.
func TestCacheHonoursExpiry(t *testing.T) {
	now := time.Now()
	v := verifier(t, token.Options{Secret: secret, CacheEntries: 10, Leeway: time.Second, Now: func() time.Time { return now }})
	exp := now.Add(time.Minute).Truncate(time.Second)
	raw := []byte(sign(t, jwt.SigningMethodHS256, secret, good("exp", exp.Unix())))
	for _, step := range []struct {
		at   time.Time
		fine bool
	}{
		{now, true}, {now, true},
		{exp.Add(time.Second - 1), true},
		{exp.Add(time.Second), false}, {exp.Add(time.Second), false},
		{exp.Add(time.Hour), false},
	} {
		now = step.at
		_, _, err := token.UserOf(v, raw)
		if step.fine {
			require.NoError(t, err, step.at)
		} else {
			refused(t, err, "expired")
		}
	}
}

// Any change of any byte of a remembered token makes it a stranger.
func TestForgedTokenNeverHitsTheCache(t *testing.T) {
	v := verifier(t, token.Options{Secret: secret, CacheEntries: 1000})
	fine := []byte(sign(t, jwt.SigningMethodHS256, secret, good()))
	_, _, err := token.UserOf(v, fine)
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		forged := append([]byte(nil), fine...)
		i := rapid.IntRange(0, len(forged)-1).Draw(t, "at")
		forged[i] = rapid.Byte().Filter(func(b byte) bool { return b != fine[i] }).Draw(t, "byte")
		if _, _, err := token.UserOf(v, forged); err == nil {
			t.Fatalf("accepted %q for %q", forged, fine)
		}
		if user, _, err := token.UserOf(v, fine); err != nil || user != "alice" {
			t.Fatalf("the good one: %q, %v", user, err)
		}
	})
}

func TestVerifierKeepsNothingOfRaw(t *testing.T) {
	v := verifier(t, token.Options{Secret: secret, CacheEntries: 10})
	raw := []byte(sign(t, jwt.SigningMethodHS256, secret, good()))
	user, _, err := token.UserOf(v, raw)
	require.NoError(t, err)
	clear(raw) // as a server does with a request's buffer
	require.Equal(t, "alice", user)
}

func TestIssue(t *testing.T) {
	i, err := token.NewIssuer(secret, "us", "shop")
	require.NoError(t, err)
	v := verifier(t, token.Options{Secret: secret, Issuer: "us", Audience: "shop"})
	raw, err := i.Issue("user 7", time.Hour)
	require.NoError(t, err)
	user, expires, err := token.UserOf(v, []byte(raw))
	require.NoError(t, err)
	require.Equal(t, "user 7", user)
	require.WithinDuration(t, time.Now().Add(time.Hour), expires, 5*time.Second)

	for _, bad := range []string{"", strings.Repeat("u", 65), "\xff", "a\ufffd"} {
		_, err = i.Issue(bad, time.Hour)
		require.Error(t, err)
	}
	_, err = i.Issue("u", 0)
	require.Error(t, err)
	_, err = token.NewIssuer(nil, "", "")
	require.Error(t, err)
}

func TestOptions(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	for name, o := range map[string]token.Options{
		"nothing":       {},
		"both":          {Secret: secret, PublicKeys: []crypto.PublicKey{keys().ed.Public()}},
		"a private key": {PublicKeys: []crypto.PublicKey{keys().ed}},
		"a small key":   {PublicKeys: []crypto.PublicKey{small.Public()}},
		"a short key":   {PublicKeys: []crypto.PublicKey{ed25519.PublicKey("short")}},
	} {
		_, err := token.NewVerifier(o)
		require.Error(t, err, name)
	}
}

// A token that verifies was signed with the secret: of what the fuzzer makes up, only
// the seeds are.
func FuzzVerify(f *testing.F) {
	fine := sign(f, jwt.SigningMethodHS256, secret, good("exp", int64(4102444800)))
	f.Add([]byte(fine))
	f.Add([]byte(sign(f, jwt.SigningMethodHS256, secret, good("sub", 1))))
	f.Add([]byte(sign(f, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good())))
	f.Add([]byte("a.b.c"))
	cached := verifier(f, token.Options{Secret: secret, CacheEntries: 100})
	plain := verifier(f, token.Options{Secret: secret})
	f.Fuzz(func(t *testing.T, raw []byte) {
		user, expires, err := token.UserOf(plain, raw)
		for range 2 {
			u, e, err2 := token.UserOf(cached, raw)
			require.Equal(t, user, u)
			require.True(t, expires.Equal(e))
			require.Equal(t, err, err2)
		}
		if err != nil {
			require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err))
			return
		}
		require.Equal(t, fine, string(raw))
	})
}

func BenchmarkVerify(b *testing.B) {
	raw := []byte(sign(b, jwt.SigningMethodHS256, secret, good("iat", time.Now().Unix())))
	for name, cache := range map[string]int{"cached": 100, "uncached": 0} {
		v := verifier(b, token.Options{Secret: secret, CacheEntries: cache})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := token.UserOf(v, raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
