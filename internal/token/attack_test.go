package token_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
	"flashgate/internal/token"
)

// signText makes a token of a header and claims as they are written here, signed with
// the secret: what no library would make.
func signText(header, claims string) []byte {
	text := encode(header) + "." + encode(claims)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return []byte(text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)))
}

const (
	plainHeader = `{"alg":"HS256","typ":"JWT"}`
	plainClaims = `{"sub":"alice","exp":4102444800}`
)

// A header may say where its key is to be had. Nobody goes there.
func TestKeysThatATokenBringsAreNotLookedAt(t *testing.T) {
	_, mallory, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	public := mallory.Public().(ed25519.PublicKey)
	v := verifier(t, token.Options{PublicKeys: []crypto.PublicKey{keys().ed.Public()}})
	for name, value := range map[string]any{
		"jwk": map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)},
		"jku": "http://127.0.0.1:1/keys.json",
		"x5u": "http://127.0.0.1:1/cert.pem",
		"x5c": []string{base64.StdEncoding.EncodeToString(public)},
		"kid": "../../../../dev/null",
	} {
		forged := jwt.NewWithClaims(jwt.SigningMethodEdDSA, good())
		forged.Header[name] = value
		raw, err := forged.SignedString(mallory)
		require.NoError(t, err)
		_, _, err = token.UserOf(v, []byte(raw))
		refused(t, err, "signature")

		// Of a good token it changes nothing.
		own := jwt.NewWithClaims(jwt.SigningMethodEdDSA, good())
		own.Header[name] = value
		raw, err = own.SignedString(keys().ed)
		require.NoError(t, err)
		user, _, err := token.UserOf(v, []byte(raw))
		require.NoError(t, err)
		require.Equal(t, "alice", user)
	}
	for _, kid := range []string{"' OR '1'='1", "/dev/null", "\x00", strings.Repeat("k", 1000), "{{.}}", "*"} {
		_, _, err := token.UserOf(v, []byte(encode(fmt.Sprintf(`{"alg":"EdDSA","kid":%q}`, kid))+"."+encode(plainClaims)+"."+encode("x")))
		require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err), "%q", kid)
	}
}

// Tokens that are signed, and strange: each is refused, or means one thing.
func TestStrangeTokens(t *testing.T) {
	v := verifier(t, token.Options{Secret: secret, CacheEntries: 100})
	deep := strings.Repeat("[", 400) + strings.Repeat("]", 400)
	for _, c := range []struct{ name, header, claims, user string }{
		{"plain", plainHeader, plainClaims, "alice"},
		{"no typ", `{"alg":"HS256"}`, plainClaims, "alice"},
		{"alg in lower case", `{"alg":"hs256"}`, plainClaims, ""},
		{"ALG", `{"ALG":"HS256"}`, plainClaims, ""},
		{"alg a number", `{"alg":256}`, plainClaims, ""},
		{"alg a list", `{"alg":["HS256"]}`, plainClaims, ""},
		{"alg null", `{"alg":null}`, plainClaims, ""},
		{"header null", `null`, plainClaims, ""},
		{"header a list", `["HS256"]`, plainClaims, ""},
		{"unsecured first, as RFC 7515 has it the last counts", `{"alg":"none","alg":"HS256"}`, plainClaims, "alice"},
		{"unsecured last", `{"alg":"HS256","alg":"none"}`, plainClaims, ""},
		{"crit", `{"alg":"HS256","crit":["b64"],"b64":false}`, plainClaims, ""},
		{"crit empty", `{"alg":"HS256","crit":[]}`, plainClaims, ""},
		{"two subs: the last counts, RFC 7519 §4", plainHeader, `{"sub":"bob","exp":4102444800,"sub":"alice"}`, "alice"},
		{"two exps: the last counts", plainHeader, `{"sub":"alice","exp":4102444800,"exp":1}`, ""},
		{"Sub and SUB", plainHeader, `{"Sub":"bob","SUB":"eve","sub":"alice","exp":4102444800}`, "alice"},
		{"sub an object", plainHeader, `{"sub":{"id":"alice"},"exp":4102444800}`, ""},
		{"sub null", plainHeader, `{"sub":null,"exp":4102444800}`, ""},
		{"sub true", plainHeader, `{"sub":true,"exp":4102444800}`, ""},
		{"sub with bytes of no UTF-8", plainHeader, "{\"sub\":\"al\xff\",\"exp\":4102444800}", ""},
		{"sub with half a surrogate pair", plainHeader, `{"sub":"al\ud800","exp":4102444800}`, ""},
		{"sub with U+FFFD, which those two would read as", plainHeader, "{\"sub\":\"al\ufffd\",\"exp\":4102444800}", ""},
		{"sub with an escape", plainHeader, `{"sub":"\u0061lice","exp":4102444800}`, "alice"},
		{"sub with NUL, verbatim", plainHeader, `{"sub":"al\u0000ice","exp":4102444800}`, "al\x00ice"},
		{"sub with braces", plainHeader, `{"sub":"}:{s}","exp":4102444800}`, "}:{s}"},
		{"sub with blanks at its end", plainHeader, `{"sub":"alice  ","exp":4102444800}`, "alice  "},
		{"exp beyond 64 bits", plainHeader, `{"sub":"alice","exp":1e19}`, ""},
		{"exp beyond floats", plainHeader, `{"sub":"alice","exp":1e999}`, ""},
		{"exp of the year 9999", plainHeader, `{"sub":"alice","exp":253402300799}`, "alice"},
		{"exp below zero", plainHeader, `{"sub":"alice","exp":-1e19}`, ""},
		{"exp a string", plainHeader, `{"sub":"alice","exp":"4102444800"}`, ""},
		{"nbf beyond 64 bits is not the past", plainHeader, `{"sub":"alice","exp":4102444800,"nbf":1e19}`, ""},
		{"iat beyond 64 bits is not the past", plainHeader, `{"sub":"alice","exp":4102444800,"iat":1e19}`, ""},
		{"nbf a string", plainHeader, `{"sub":"alice","exp":4102444800,"nbf":"0"}`, ""},
		{"claims null", plainHeader, `null`, ""},
		{"claims a list", plainHeader, `[{"sub":"alice","exp":4102444800}]`, ""},
		{"claims twice", plainHeader, plainClaims + plainClaims, ""},
		{"claims and rubbish", plainHeader, plainClaims + "}", ""},
		{"a deep claim", plainHeader, `{"sub":"alice","exp":4102444800,"x":` + deep + `}`, "alice"},
		{"a byte order mark", plainHeader, "\ufeff" + plainClaims, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // the second may come from the cache
				user, _, err := token.UserOf(v, signText(c.header, c.claims))
				require.Equal(t, c.user, user)
				if c.user == "" {
					require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err), "%v", err)
					require.NotContains(t, err.Error(), "alice", "a refusal quotes nothing of the token")
				}
			}
		})
	}
}

// Whatever text a token's sub is, it is the user byte for byte, or the token is refused.
func TestSubIsVerbatim(t *testing.T) {
	v := verifier(t, token.Options{Secret: secret})
	i, err := token.NewIssuer(secret, "", "")
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		name := string(rapid.SliceOfN(rapid.Byte(), 0, 70).Draw(t, "name"))
		if rapid.Bool().Draw(t, "text") {
			name = rapid.StringN(0, 40, 70).Draw(t, "text name")
		}
		raw, err := i.Issue(name, time.Hour)
		if err != nil {
			return
		}
		user, _, err := token.UserOf(v, []byte(raw))
		if err != nil || user != name {
			t.Fatalf("%q came back as %q, %v", name, user, err)
		}
	})
}

// FuzzSigned: of what is signed, a verifier makes a user of 1–64 bytes of UTF-8, or a
// refusal, and never a panic.
func FuzzSigned(f *testing.F) {
	f.Add(plainHeader, plainClaims)
	f.Add(`{"alg":"none"}`, plainClaims)
	f.Add(plainHeader, `{"sub":"a","exp":1e300}`)
	f.Add(plainHeader, `{"sub":"\ud800","exp":4102444800,"aud":["x",1]}`)
	f.Add(`{"alg":"HS256","crit":null}`, `{"sub":"a","exp":4102444800,"nbf":-0}`)
	plain := verifier(f, token.Options{Secret: secret})
	scoped := verifier(f, token.Options{Secret: secret, Issuer: "us", Audience: "shop"})
	f.Fuzz(func(t *testing.T, header, claims string) {
		raw := signText(header, claims)
		for _, v := range []*token.Verifier{plain, scoped} {
			user, expires, err := token.UserOf(v, raw)
			if err != nil {
				require.Equal(t, sale.CodeUnauthenticated, sale.CodeOf(err), "%v", err)
				require.Empty(t, user)
				continue
			}
			require.NotEmpty(t, user)
			require.LessOrEqual(t, len(user), sale.MaxUserIDBytes)
			require.True(t, strings.ToValidUTF8(user, "") == user && !strings.ContainsRune(user, '\ufffd'), "%q", user)
			require.True(t, expires.After(time.Now()), "%s", expires)
		}
	})
}
