package cli

import (
	"fmt"
	"io"
)

// plain passes text on with every control character but line feed and tab written out, as
// \u001b: a user's name, which may be any UTF-8, moves no terminal's cursor and forges no
// line. JSON stays JSON by it. It does not look at anything else: what it is given is text.
type plain struct {
	to io.Writer
	c2 bool // the last write ended in the first byte of what may be a C1 control (U+0080–U+009F)
}

const firstOfC1 = 0xc2

// Write writes all of p, or fails.
func (w *plain) Write(p []byte) (int, error) {
	out, copied := make([]byte, 0, len(p)), 0
	if w.c2 && len(p) > 0 && (p[0] < 0x80 || p[0] > 0x9f) {
		out = append(out, firstOfC1)
		w.c2 = false
	}
	for i, c := range p {
		switch {
		case w.c2: // c is 0x80–0x9f
			out, copied = fmt.Appendf(out, `\u%04x`, c), i+1
			w.c2 = false
		case c < ' ' && c != '\n' && c != '\t', c == 0x7f:
			out, copied = fmt.Appendf(append(out, p[copied:i]...), `\u%04x`, c), i+1
		case c == firstOfC1 && (i+1 == len(p) || p[i+1] >= 0x80 && p[i+1] <= 0x9f):
			out, copied = append(out, p[copied:i]...), i+1
			w.c2 = true
		}
	}
	if _, err := w.to.Write(append(out, p[copied:]...)); err != nil {
		return 0, err
	}
	return len(p), nil
}
