package limits

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Right to left past trusted proxies; what lies before the first that is not trusted was
// written by whoever sent it.
func TestClient(t *testing.T) {
	const peer = "10.0.0.1"
	for name, tc := range map[string]struct {
		header, want string
		values       []string
	}{
		"one":                   {"X-Forwarded-For", "192.0.2.1", []string{"192.0.2.1"}},
		"forged before it":      {"X-Forwarded-For", "192.0.2.1", []string{"203.0.113.9, 192.0.2.1"}},
		"past trusted proxies":  {"X-Forwarded-For", "192.0.2.1", []string{"203.0.113.9, 192.0.2.1, 10.1.2.3,10.0.0.2"}},
		"several headers":       {"X-Forwarded-For", "192.0.2.1", []string{"203.0.113.9", "192.0.2.1", "10.0.0.2"}},
		"all trusted":           {"X-Forwarded-For", "10.9.9.9", []string{"10.9.9.9, 10.0.0.2"}},
		"none":                  {"X-Forwarded-For", peer, nil},
		"empty":                 {"X-Forwarded-For", peer, []string{""}},
		"no address":            {"X-Forwarded-For", peer, []string{"192.0.2.1, unknown"}},
		"no address before":     {"X-Forwarded-For", "10.0.0.2", []string{"unknown, 10.0.0.2"}},
		"an empty entry":        {"X-Forwarded-For", "10.0.0.2", []string{"192.0.2.1,,10.0.0.2"}},
		"with ports":            {"X-Forwarded-For", "192.0.2.1", []string{"192.0.2.1:443"}},
		"IPv6":                  {"X-Forwarded-For", "2001:db8::1", []string{"2001:db8::1"}},
		"IPv6 with a port":      {"X-Forwarded-For", "2001:db8::1", []string{"[2001:db8::1]:443"}},
		"IPv6 in brackets":      {"X-Forwarded-For", "2001:db8::1", []string{"[2001:db8::1]"}},
		"IPv4 in IPv6":          {"X-Forwarded-For", "192.0.2.1", []string{"::ffff:192.0.2.1"}},
		"trusted as IPv6":       {"X-Forwarded-For", "192.0.2.1", []string{"192.0.2.1, ::ffff:10.0.0.2"}},
		"a zone":                {"X-Forwarded-For", peer, []string{"fe80::1%eth0"}},
		"too long":              {"X-Forwarded-For", peer, []string{strings.Repeat("1", 500)}},
		"many hops":             {"X-Forwarded-For", "10.0.0.2", []string{"192.0.2.1" + strings.Repeat(", 10.0.0.2", maxHops)}},
		"Forwarded":             {"Forwarded", "192.0.2.1", []string{"for=203.0.113.9, for=192.0.2.1;proto=https;by=10.0.0.1"}},
		"Forwarded, any case":   {"Forwarded", "192.0.2.1", []string{"proto=https; For=192.0.2.1"}},
		"Forwarded, quoted":     {"Forwarded", "2001:db8::1", []string{`for="[2001:db8::1]:4711"`}},
		"Forwarded, hidden":     {"Forwarded", peer, []string{"for=_hidden"}},
		"Forwarded, twice":      {"Forwarded", peer, []string{"for=192.0.2.1;for=192.0.2.2"}},
		"Forwarded, without it": {"Forwarded", peer, []string{"by=192.0.2.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := shipped(t)
			r.Proxies = Proxies{Trusted: []string{"10.0.0.0/8", "2001:db8:ffff::/48"}, Header: tc.header}
			l := newLimiter(t, r, Options{})
			require.Equal(t, tc.header, l.ForwardedHeader(netip.MustParseAddr(peer)))
			require.Equal(t, tc.header, l.ForwardedHeader(netip.MustParseAddr("::ffff:10.0.0.1")))
			require.Empty(t, l.ForwardedHeader(netip.MustParseAddr("192.0.2.1")), "whose headers say nothing")
			require.Empty(t, l.ForwardedHeader(netip.Addr{}))
			var values [][]byte
			for _, v := range tc.values {
				values = append(values, []byte(v))
			}
			require.Equal(t, tc.want, l.Client(netip.MustParseAddr(peer), values).String())
		})
	}
	l := newLimiter(t, shipped(t), Options{})
	require.Empty(t, l.ForwardedHeader(netip.MustParseAddr("127.0.0.1")), "as shipped nobody is trusted")
}

// Whatever is sent: the answer is the peer or an address written there, never in a
// trusted network unless all behind it are, and what a client puts in front changes nothing.
func FuzzClient(f *testing.F) {
	f.Add("192.0.2.1, 10.0.0.2", "203.0.113.9", false)
	f.Add(`for="[2001:db8::1]:1";by=x, for=10.0.0.1`, "for=1.2.3.4", true)
	trusted := &networks{}
	trusted.addTexts([]string{"10.0.0.0/8"})
	peer := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, value, before string, rfc bool) {
		header := "X-Forwarded-For"
		if rfc {
			header = "Forwarded"
		}
		got := clientOf(trusted, header, peer, [][]byte{[]byte(value)})
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q: %v", value, got)
		}
		if !trusted.has(got) {
			with := clientOf(trusted, header, peer, [][]byte{[]byte(before), []byte(value)})
			if with != got {
				t.Fatalf("%q before %q made %v of %v", before, value, with, got)
			}
		}
	})
}

func TestNetworks(t *testing.T) {
	var n networks
	require.False(t, n.has(netip.MustParseAddr("192.0.2.1")))
	n.addTexts([]string{"192.0.2.0/24", "198.51.100.7", "::ffff:203.0.113.0/120", "2001:db8::/32", "::1", "0.0.0.0/8"})
	for text, want := range map[string]bool{
		"192.0.2.255": true, "192.0.3.0": false, "198.51.100.7": true, "198.51.100.8": false, "203.0.113.200": true,
		"2001:db8:ffff::1": true, "2001:db9::": false, "::1": true, "::2": false, "0.255.0.1": true, "1.0.0.0": false,
	} {
		require.Equal(t, want, n.has(netip.MustParseAddr(text)), text)
	}
	require.False(t, n.has(netip.Addr{}))
}
