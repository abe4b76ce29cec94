package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/audit"
	"flashgate/internal/operator"
)

// nasty forges lines and moves cursors, if it may.
const nasty = "ann\nlevel=ERROR msg=forged\r\n{\"level\":\"ERROR\",\"msg\":\"forged\"}\x1b[2J\x1b]0;title\x07\u009b31m\x00\x7f\b\u0085\u2028\"'\\"

func controls(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' })
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"":                                      "",
		"a\tb\n":                                "a\tb\n",
		"手机 🛒 é ¢":                              "手机 🛒 é ¢",
		"\x1b[2J":                               `\u001b[2J`,
		"a\r\nb":                                "a\\u000d\nb",
		"\u0080\u009f\u00a0":                    "\\u0080\\u009f\u00a0",
		"\x7f":                                  `\u007f`,
		"\xc2":                                  "",
		"\xc2a":                                 "\xc2a",
		"\xc2\xc2\x9b":                          "\xc2\\u009b",
		`{"user":"` + "\u009b\x7f" + `","n":1}`: `{"user":"\u009b\u007f","n":1}`,
	} {
		var out bytes.Buffer
		n, err := (&plain{to: &out}).Write([]byte(in))
		require.NoError(t, err)
		require.Equal(t, len(in), n)
		require.Equal(t, want, out.String(), "%q", in)
	}
}

// However a text is cut into writes, the same comes out, without a control.
func TestPlainInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.RuneFrom([]rune("ac\x1b\n\u0080\u009b\u009f\u00a0\u00c2¢\x7f")), 0, 40, -1)).Draw(t, "text")
		var whole, pieces bytes.Buffer
		_, _ = (&plain{to: &whole}).Write([]byte(text))
		w := &plain{to: &pieces}
		for rest := text; rest != ""; {
			n := rapid.IntRange(0, len(rest)).Draw(t, "piece")
			_, _ = w.Write([]byte(rest[:n]))
			if rest = rest[n:]; n == 0 {
				_, _ = w.Write([]byte(rest[:1]))
				rest = rest[1:]
			}
		}
		if whole.String() != pieces.String() || controls(whole.String()) {
			t.Fatalf("%q, in pieces %q", whole.String(), pieces.String())
		}
	})
}

var textRecord = regexp.MustCompile(`^time=\S+ level=(WARN|ERROR) msg=("([^"\\]|\\.)*"|\S+)( \S+=("([^"\\]|\\.)*"|\S*))*$`)

// One record is one line, whatever is logged in it.
func TestLogsCannotBeForged(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			log := slog.New(logHandler(&out, format, slog.LevelInfo))
			log.Warn(nasty, "user", nasty, nasty, nasty, "bytes", []byte(nasty), "any", struct{ A string }{nasty})
			log.WithGroup(nasty).With("k", nasty).Error("x", "err", &json.SyntaxError{}, "stack", nasty)
			lines := 0
			for s := bufio.NewScanner(&out); s.Scan(); lines++ {
				require.False(t, controls(s.Text()), "%q", s.Text())
				if format == "text" {
					require.True(t, strings.HasPrefix(s.Text(), "time="), "%q", s.Text())
					continue
				}
				require.True(t, json.Valid(s.Bytes()), "%q", s.Text())
			}
			require.Equal(t, 2, lines)
		})
	}
	var out bytes.Buffer
	slog.New(logHandler(&out, "text", slog.LevelInfo)).Warn(nasty, "user", nasty)
	require.Regexp(t, textRecord, strings.TrimSuffix(out.String(), "\n"))
}

// What shoppers and messages hold reaches an operator's terminal as text.
func TestTablesMoveNoCursor(t *testing.T) {
	var raw bytes.Buffer
	out := &plain{to: &raw}
	require.NoError(t, printTasks(out, []operator.TaskView{{UserID: nasty, SaleID: nasty, LastError: nasty,
		Abandoned: &operator.DecisionView{Decision: operator.Decision{By: nasty, Reason: nasty}}}}))
	require.NoError(t, printDead(out, []operator.DeadBatchView{{SaleID: nasty, MessageID: nasty, Error: nasty, Body: nasty}}))
	require.NoError(t, printAudit(out, &audit.Report{Breaches: []audit.Breach{{SaleID: nasty, Detail: nasty}}}))
	require.NoError(t, printJSON(out, map[string]string{nasty: nasty}))
	require.False(t, controls(raw.String()), "%q", raw.String())
	require.Contains(t, raw.String(), `\u001b[2J`)

	// The program's own outputs go that way.
	code, _, errout := command("sale", "open", embedded, nasty)
	require.Equal(t, 1, code)
	require.False(t, controls(errout), "%q", errout)
}
