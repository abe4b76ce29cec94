package operator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"unicode/utf8"

	"flashgate/internal/sale"
)

// maxFaultBytes bounds what of a bad body is quoted in its refusal.
const maxFaultBytes = 160

// readJSON reads a body into v, a pointer to a struct: one JSON object (RFC 8259) in UTF-8
// that names v's fields exactly and none twice. encoding/json alone takes the last of two,
// and any case of a name: what an operator sent by mistake would change more than he read
// over. An empty body is the zero value. Errors: INVALID_REQUEST, BODY_TOO_LARGE.
func readJSON(r *http.Request, v any) error {
	body, err := io.ReadAll(r.Body)
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return &sale.Error{Code: sale.CodeTooLarge, Detail: fmt.Sprintf("body: want at most %d bytes", large.Limit)}
	}
	if err == nil {
		if body = bytes.Trim(body, " \t\r\n"); len(body) == 0 {
			return nil
		}
		err = strictObject(body, v)
	}
	if err != nil {
		fault := err.Error()
		if len(fault) > maxFaultBytes {
			fault = strings.ToValidUTF8(fault[:maxFaultBytes], "") + "…"
		}
		return &sale.Error{Code: sale.CodeInvalid, Detail: "body: " + fault}
	}
	return nil
}

func strictObject(body []byte, v any) error {
	switch {
	case body[0] != '{':
		return errors.New("want one JSON object")
	case !utf8.Valid(body):
		return errors.New("is no UTF-8")
	}
	if err := json.Unmarshal(body, v); err != nil { // all of it is one value
		return err
	}
	fields := map[string]bool{} // by name; true once given
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v).Elem()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			fields[name] = false
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name := token.(string)
		switch given, known := fields[name]; {
		case !known:
			return fmt.Errorf("there is no field %q", name)
		case given:
			return fmt.Errorf("%q is given twice", name)
		}
		fields[name] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
	}
	return nil
}
