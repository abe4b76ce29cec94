package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var commonSecret = []byte("a secret of the tests, of more than 32 bytes")

// signed makes a token of a header and claims as they are written here.
func signed(header, claims string) []byte {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, commonSecret)
	mac.Write([]byte(text))
	return []byte(text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)))
}

var commonNow = time.Unix(1_800_000_000, 500)

func commonVerifiers(t testing.TB) []*Verifier {
	var all []*Verifier
	for _, o := range []Options{{}, {Issuer: "us", Audience: "shop", Leeway: 5 * time.Second}, {Audience: "shop"}, {Issuer: "us"}} {
		o.Secret, o.Now = commonSecret, func() time.Time { return commonNow }
		v, err := NewVerifier(o)
		require.NoError(t, err)
		all = append(all, v)
	}
	return all
}

// UserOf is Verify for who keeps the user.
func UserOf(v *Verifier, raw []byte) (user string, expires time.Time, err error) {
	name, expires, err := v.Verify(nil, raw)
	return string(name), expires, err
}

// agree: what is read here, golang-jwt reads as well, and alike. It reports whether the
// token was read here.
func agree(t require.TestingT, v *Verifier, raw []byte) bool {
	user, expires, ok := v.common.verify(nil, raw, v.now())
	if len(raw) > MaxBytes { // nobody reads it
		require.False(t, ok)
		return false
	}
	want, until, err := v.verify(raw)
	if ok {
		require.NoError(t, err, "%q", raw)
		require.Equal(t, want, string(user))
		require.True(t, until.Equal(expires), "%v %v", until, expires)
	}
	got, at, failed := UserOf(v, raw)
	require.Equal(t, err, failed)
	require.Equal(t, want, got)
	require.True(t, until.Equal(at))
	return ok
}

const commonHeader = `{"alg":"HS256","typ":"JWT"}`

func TestCommonTokens(t *testing.T) {
	all := commonVerifiers(t)
	for _, c := range []struct {
		claims string
		here   string // which of the verifiers read it here
	}{
		{`{"sub":"alice","exp":1800000001}`, "0"},
		{`{"sub":"alice","exp":1800000001,"iat":1800000000,"nbf":1799999999}`, "0"},
		{`{"iss":"us","sub":"alice","aud":"shop","exp":1800000001,"jti":"x","n":7}`, "0123"},
		{`{"iss":"us","sub":"alice","exp":1800000001}`, "03"},
		{`{"iss":"them","aud":"shop","sub":"alice","exp":1800000001}`, "02"},
		{`{"iss":"us","aud":"shop","sub":"alice","exp":1799999996}`, "1"},
		{`{"iss":"us","aud":"shop","sub":"alice","exp":1799999995}`, ""},
		{`{"iss":"us","aud":"shop","sub":"alice","exp":1800000001,"nbf":1800000005}`, "1"},
		{`{"iss":"us","aud":"shop","sub":"alice","exp":1800000001,"iat":1800000006}`, ""},
		{`{"sub":"alice","exp":1800000000}`, ""},
		{`{"sub":"alice","exp":253402300799}`, "0"},
		{`{"sub":"alice","exp":253402300800}`, ""},
		{`{"sub":"alice","exp":1800000001,"SUB":"eve"}`, "0"},
		{`{"sub":"alice","exp":1800000001,"sub":"eve"}`, ""},
		{`{"sub":"alice","exp":1800000001,"exp":1}`, ""},
		{`{"sub":"alice","exp":1800000001,"exp":"x"}`, ""},
		{`{"sub":"alice","exp":1800000001,"sub":7}`, ""},
		{`{"sub":"al\u0069ce","exp":1800000001}`, ""},
		{`{"sub":"alicé","exp":1800000001}`, ""},
		{`{"sub":"alice", "exp":1800000001}`, ""},
		{`{"sub":"alice","exp":1.800000001e9}`, ""},
		{`{"sub":"alice","exp":01800000001}`, ""},
		{`{"sub":"alice","exp":-1}`, ""},
		{`{"sub":"alice","exp":0}`, ""},
		{`{"sub":"alice","exp":1800000001,"admin":true}`, ""},
		{`{"sub":"alice","exp":1800000001,"aud":["shop"],"iss":"us"}`, ""},
		{`{"sub":"alice","exp":1800000001,}`, ""},
		{`{"sub":"alice","exp":1800000001}}`, ""},
		{`{"sub":"alice","exp":1800000001}{}`, ""},
		{`{"sub":"alice""exp":1800000001}`, ""},
		{`{"sub":"alice","exp":1800000001x}`, ""},
		{`{"sub":"` + strings.Repeat("u", 65) + `","exp":1800000001}`, ""},
		{`{"sub":"","exp":1800000001}`, ""},
		{`{"exp":1800000001}`, ""},
		{`{"sub":"alice"}`, ""},
		{`{}`, ""}, {`{`, ""}, {`}`, ""}, {``, ""}, {`null`, ""}, {`{"sub`, ""}, {`{"sub":`, ""}, {`{"sub":"a"`, ""},
	} {
		for i, v := range all {
			for _, header := range []string{commonHeader, `{"typ":"JWT","alg":"HS256"}`} {
				require.Equal(t, strings.ContainsRune(c.here, rune('0'+i)), agree(t, v, signed(header, c.claims)), "%d: %s", i, c.claims)
			}
			require.False(t, agree(t, v, signed(`{"alg":"HS256"}`, c.claims)), c.claims)
		}
	}
	// Without the right signature nothing is read here.
	fine := signed(commonHeader, `{"sub":"alice","exp":1800000001}`)
	for i := range fine {
		forged := append([]byte(nil), fine...)
		forged[i] ^= 1
		require.False(t, agree(t, all[0], forged), "%q", forged)
		require.False(t, agree(t, all[0], fine[:i]))
	}
}

// FuzzCommon: of anything that is signed, and of anything else, both readers say the same.
func FuzzCommon(f *testing.F) {
	f.Add(commonHeader, `{"iss":"us","sub":"alice","aud":"shop","exp":1800000001,"iat":1800000000,"nbf":1}`, "")
	f.Add(commonHeader, `{"sub":"a","exp":1800000001,"x":1e9,"sub":"b"}`, "")
	f.Add(`{"typ":"JWT","alg":"HS256"}`, `{"sub":"a b","exp":999999999999999}`, "x")
	f.Add("", "", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add(commonHeader, `{}`, strings.Repeat("x", MaxBytes+1))
	all := commonVerifiers(f)
	f.Fuzz(func(t *testing.T, header, claims, raw string) {
		for _, v := range all {
			agree(t, v, []byte(raw))
			agree(t, v, signed(header, claims))
			agree(t, v, append(signed(header, claims), raw...))
		}
	})
}

// BenchmarkCommon is a token that nobody has seen before, by each of the two readers.
func BenchmarkCommon(b *testing.B) {
	v, raw := commonVerifiers(b)[0], signed(commonHeader, `{"sub":"0190b7c2-6d4e-7a5e-9d1c-1f0a5ad6c1e2","exp":1800000001,"iat":1799990000}`)
	b.Run("here", func(b *testing.B) {
		var user []byte
		b.ReportAllocs()
		for b.Loop() {
			var ok bool
			if user, _, ok = v.common.verify(user[:0], raw, commonNow); !ok {
				b.Fatal("not read")
			}
		}
	})
	b.Run("golang-jwt", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := v.verify(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestCommonTokenAllocatesNothing(t *testing.T) {
	v, raw := commonVerifiers(t)[0], signed(commonHeader, `{"sub":"0190b7c2-6d4e-7a5e-9d1c-1f0a5ad6c1e2","exp":1800000001}`)
	user := make([]byte, 0, 64)
	allocs := testing.AllocsPerRun(1000, func() {
		if _, _, err := v.Verify(user, raw); err != nil {
			t.Fatal(err)
		}
	})
	if !raceEnabled { // pools drop at random under the race detector
		require.Zero(t, allocs)
	}
}
