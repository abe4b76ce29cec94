package limits

import (
	"bytes"
	"net/netip"
	"slices"
	"unsafe"

	"flashgate/internal/sale"
)

// networks is a set of networks. Looking an address up costs one look into a map for
// each length of prefix there is, and nothing when there is none.
type networks struct {
	bits []lengthOf
	set  map[netip.Prefix]struct{}
}

// lengthOf is a length of prefix of one family.
type lengthOf struct {
	bits int
	is4  bool
}

func (n *networks) add(p netip.Prefix) {
	if n.set == nil {
		n.set = map[netip.Prefix]struct{}{}
	}
	n.set[p] = struct{}{}
	if length := (lengthOf{p.Bits(), p.Addr().Is4()}); !slices.Contains(n.bits, length) {
		n.bits = append(n.bits, length)
	}
}

func (n *networks) addTexts(texts []string) {
	for _, text := range texts {
		p, err := sale.ParseNetwork(text)
		if err != nil {
			panic("BUG: the rules let a network through: " + text)
		}
		n.add(p)
	}
}

// has reports whether a network of the set holds ip, which is unmapped.
func (n *networks) has(ip netip.Addr) bool {
	for _, length := range n.bits {
		if length.is4 != ip.Is4() {
			continue
		}
		p, err := ip.Prefix(length.bits)
		if err != nil {
			continue // an address without a family: a peer that has none
		}
		if _, ok := n.set[p]; ok {
			return true
		}
	}
	return false
}

// maxHops bounds how many entries of a forwarding header are looked at: far more
// proxies than stand in a row, and a sender can write thousands.
const maxHops = 32

// clientOf walks a forwarding header from its end, where the nearest proxy wrote, past
// the trusted ones: the first address that is not trusted is the client. What lies
// before that, or before something that is no address, was written by whoever sent it.
func clientOf(trusted *networks, header string, peer netip.Addr, values [][]byte) netip.Addr {
	client := peer
	hops := 0
	for v := len(values) - 1; v >= 0; v-- {
		rest := values[v]
		for len(rest) > 0 {
			at := bytes.LastIndexByte(rest, ',')
			entry := bytes.TrimSpace(rest[at+1:])
			rest = rest[:max(at, 0)]
			if hops++; hops > maxHops {
				return client
			}
			ip, ok := hopOf(header, entry)
			if !ok {
				return client
			}
			client = ip
			if !trusted.has(ip) {
				return client
			}
		}
	}
	return client
}

var forwardedFor = []byte("for")

// hopOf reads one entry of a forwarding header.
func hopOf(header string, entry []byte) (netip.Addr, bool) {
	if header == "Forwarded" { // RFC 7239: for="[2001:db8::1]:443";proto=https
		node, found := []byte(nil), false
		for pair := range bytes.SplitSeq(entry, []byte{';'}) {
			name, value, ok := bytes.Cut(pair, []byte{'='})
			if ok && bytes.EqualFold(bytes.TrimSpace(name), forwardedFor) {
				if found {
					return netip.Addr{}, false
				}
				node, found = bytes.TrimSpace(value), true
			}
		}
		entry = node
		if n := len(entry); n >= 2 && entry[0] == '"' && entry[n-1] == '"' {
			entry = entry[1 : n-1]
		}
	}
	return parseHop(entry)
}

// maxHopBytes is that of the longest address with brackets, zone excluded, and port.
const maxHopBytes = len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535")

// parseHop reads an address with or without a port.
func parseHop(entry []byte) (netip.Addr, bool) {
	if len(entry) == 0 || len(entry) > maxHopBytes || bytes.IndexByte(entry, '%') >= 0 {
		return netip.Addr{}, false
	}
	// A copy would be an allocation a hop. Only the errors keep the text, and they go no
	// further; a zone, which an address would keep, is ruled out.
	text := unsafe.String(&entry[0], len(entry))
	ip, err := netip.ParseAddr(text)
	if err != nil {
		var port netip.AddrPort
		if port, err = netip.ParseAddrPort(text); err == nil {
			ip = port.Addr()
		} else if n := len(text); text[0] == '[' && text[n-1] == ']' {
			ip, err = netip.ParseAddr(text[1 : n-1])
		}
	}
	if err != nil {
		return netip.Addr{}, false
	}
	return ip.Unmap(), true
}
