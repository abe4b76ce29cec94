package ledger

import (
	"database/sql/driver"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"flashgate/internal/sale"
)

// momentForm is how both engines hold a time: UTC, to the millisecond, of one width,
// so that SQLite's text orders as the times do.
const momentForm = "2006-01-02 15:04:05.000"

// moment is a time in a column. The zero time is NULL.
type moment struct{ time.Time }

// Value implements driver.Valuer.
func (m moment) Value() (driver.Value, error) {
	if m.IsZero() {
		return nil, nil
	}
	return m.text(), nil
}

func (m moment) text() string { return m.UTC().Format(momentForm) }

// Scan implements sql.Scanner.
func (m *moment) Scan(value any) (err error) {
	switch v := value.(type) {
	case nil:
		m.Time = time.Time{}
	case time.Time:
		m.Time = v.UTC()
	case string:
		m.Time, err = time.ParseInLocation(momentForm, v, time.UTC)
	case []byte:
		m.Time, err = time.ParseInLocation(momentForm, string(v), time.UTC)
	default:
		err = fmt.Errorf("ledger: a time came as %T", value)
	}
	return err
}

// octets is a byte string on its way to MySQL. GORM would take a []byte after a
// parenthesis for a list.
type octets string

// Value implements driver.Valuer.
func (o octets) Value() (driver.Value, error) { return []byte(o), nil }

// maxTextBytes bounds what is stored of an error's text; the columns hold as many characters.
const maxTextBytes = 1000

// clip makes text that any engine stores: valid UTF-8 of at most n bytes.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// maxIDsPerQuery bounds an IN list. MySQL plans a list of ranges within 8 MiB
// (range_optimizer_max_mem_size) and scans the whole table beyond.
const maxIDsPerQuery = 1000

// slices of ids, as arguments, that one query takes.
func eachSlice(ids []sale.ID, f func(args []any) error) error {
	for len(ids) > 0 {
		n := min(len(ids), maxIDsPerQuery)
		args := make([]any, n)
		for i, id := range ids[:n] {
			args[i] = int64(id)
		}
		if err := f(args); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}
