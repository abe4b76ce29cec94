package strictyaml

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

type kind uint8

const (
	kindStruct kind = iota
	kindString
	kindBool
	kindInt
	kindFloat
	kindDuration
	kindStrings
	kindMap // of structs, by names that the file chooses
	kindCustom
)

// field is what a struct's tags say of one key.
type field struct {
	kind       kind
	required   bool
	hasDefault bool
	def        string
	min, max   string // as written; "" = no bound
	oneof      []string
}

var (
	durationType    = reflect.TypeFor[time.Duration]()
	unmarshalerType = reflect.TypeFor[yaml.Unmarshaler]()
)

// fieldsOf reads the tags of a struct's fields, by key. A field without a yaml tag, or
// with "-", is not in the file.
func fieldsOf(t reflect.Type) map[string]*field {
	fields := make(map[string]*field, t.NumField())
	for i := range t.NumField() {
		sf := t.Field(i)
		name := sf.Tag.Get("yaml")
		if name == "" || name == "-" {
			continue
		}
		f := &field{kind: kindOf(sf.Type, t.Name()+"."+sf.Name), min: sf.Tag.Get("min"), max: sf.Tag.Get("max")}
		f.def, f.hasDefault = sf.Tag.Lookup("default")
		f.required = sf.Tag.Get("required") == "true"
		if words := sf.Tag.Get("oneof"); words != "" {
			f.oneof = strings.Split(words, "|")
		}
		fields[name] = f
	}
	return fields
}

func kindOf(t reflect.Type, name string) kind {
	switch {
	case reflect.PointerTo(t).Implements(unmarshalerType):
		return kindCustom
	case t == durationType:
		return kindDuration
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String:
		return kindStrings
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String && t.Elem().Kind() == reflect.Struct:
		return kindMap
	}
	switch t.Kind() {
	case reflect.Struct:
		return kindStruct
	case reflect.String:
		return kindString
	case reflect.Bool:
		return kindBool
	case reflect.Int, reflect.Int32, reflect.Int64:
		return kindInt
	case reflect.Float64:
		return kindFloat
	default:
		panic(fmt.Sprintf("BUG: %s: a field of type %s cannot be read from YAML", name, t))
	}
}

// set reads n into v and holds it against the bounds.
func (f *field) set(n *yaml.Node, v reflect.Value) error {
	switch f.kind {
	case kindCustom:
		return v.Addr().Interface().(yaml.Unmarshaler).UnmarshalYAML(n)
	case kindStrings:
		return f.setStrings(n, v)
	}
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("is %s%s", describe(n), f.wantAfterColon())
	}
	if f.kind == kindString && n.ShortTag() != "!!str" {
		return fmt.Errorf("%s is not text: put it in quotes", n.Value)
	}
	if f.kind != kindString && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 && f.kind != kindDuration {
		return fmt.Errorf("%q is text%s, without quotes", n.Value, f.wantAfterColon())
	}
	return f.setText(n.Value, v)
}

// setText reads the text of a scalar into v; defaults come this way too.
func (f *field) setText(text string, v reflect.Value) error {
	switch f.kind {
	case kindString:
		if len(f.oneof) > 0 && !slices.Contains(f.oneof, text) {
			return fmt.Errorf("%q: want %s", text, strings.Join(f.oneof, " or "))
		}
		v.SetString(text)
		return f.inRange(float64(len(text)), text, " bytes", parseInt)
	case kindBool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q: want true or false", text)
		}
		v.SetBool(text == "true")
		return nil
	case kindInt:
		i, err := parseInt(text)
		if err != nil {
			return fmt.Errorf("%q%s", text, f.wantAfterColon())
		}
		if v.OverflowInt(int64(i)) {
			return fmt.Errorf("%s is too large%s", text, f.wantAfterColon())
		}
		v.SetInt(int64(i))
		return f.inRange(i, text, "", parseInt)
	case kindFloat:
		x, err := parseFloat(text)
		if err != nil {
			return fmt.Errorf("%q%s", text, f.wantAfterColon())
		}
		v.SetFloat(x)
		return f.inRange(x, text, "", parseFloat)
	case kindDuration:
		dur, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q: a duration has a unit, such as 500ms, 20s, 2m or 1h", text)
		}
		v.SetInt(int64(dur))
		return f.inRange(float64(dur), text, "", parseDuration)
	case kindStrings:
		v.Set(reflect.ValueOf(strings.Split(text, ",")).Convert(v.Type()))
		return nil
	default:
		panic("BUG: no text form")
	}
}

func (f *field) setStrings(n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.SequenceNode {
		return fmt.Errorf("is %s: want a list", describe(n))
	}
	list := reflect.MakeSlice(v.Type(), 0, len(n.Content))
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.ShortTag() != "!!str" || item.Value == "" {
			return fmt.Errorf("line %d: want a list of text", item.Line)
		}
		list = reflect.Append(list, reflect.ValueOf(item.Value).Convert(v.Type().Elem()))
	}
	v.Set(list)
	return f.inRange(float64(list.Len()), strconv.Itoa(list.Len())+" items", " items", parseInt)
}

func (f *field) setDefault(v reflect.Value, name string) {
	var err error
	if f.kind == kindCustom {
		err = v.Addr().Interface().(yaml.Unmarshaler).UnmarshalYAML(&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: f.def})
	} else {
		err = f.setText(f.def, v)
	}
	if err != nil {
		panic(fmt.Sprintf("BUG: %s: the default is bad: %v", name, err))
	}
}

// inRange holds x, written as text, against min and max, which parse reads.
func (f *field) inRange(x float64, text, unit string, parse func(string) (float64, error)) error {
	for _, bound := range []struct {
		text string
		out  func(limit float64) bool
	}{
		{f.min, func(limit float64) bool { return x < limit }},
		{f.max, func(limit float64) bool { return x > limit }},
	} {
		if bound.text == "" {
			continue
		}
		limit, err := parse(bound.text)
		if err != nil {
			panic("BUG: bad bound " + bound.text)
		}
		if bound.out(limit) {
			return fmt.Errorf("%s is out of range: want %s%s", text, f.rangeText(), unit)
		}
	}
	return nil
}

func (f *field) rangeText() string {
	switch {
	case f.min != "" && f.max != "":
		return f.min + " to " + f.max
	case f.min != "":
		return f.min + " or more"
	default:
		return f.max + " or less"
	}
}

// want says what a value would look like: ", such as 20s", or "".
func (f *field) want() string {
	switch {
	case len(f.oneof) > 0:
		return ": " + strings.Join(f.oneof, " or ")
	case f.kind == kindDuration:
		return ", such as 500ms, 20s or 2m"
	default:
		return ""
	}
}

func (f *field) wantAfterColon() string {
	var what string
	switch f.kind {
	case kindInt:
		what = "a whole number"
	case kindFloat:
		what = "a number"
	case kindDuration:
		what = "a duration, such as 500ms, 20s or 2m"
	case kindBool:
		what = "true or false"
	default:
		what = "text"
	}
	if (f.kind == kindInt || f.kind == kindFloat) && (f.min != "" || f.max != "") {
		what += ", " + f.rangeText()
	}
	return ": want " + what
}

// otherwise says what an absent key means.
func (f *field) otherwise() string {
	if f.hasDefault && f.def != "" {
		return " for " + f.def
	}
	return ""
}

// maxExactFloat is the largest power of two below which every whole number is a float64.
const maxExactFloat = 1 << 53

// parseInt reads a whole number in decimal; 1e11 and 1_000_000 are whole numbers too.
// Hexadecimal and leading zeros (octal in YAML 1.1) are not taken: too easily misread.
func parseInt(text string) (float64, error) {
	x, err := parseFloat(text)
	if err != nil {
		return 0, err
	}
	if x != math.Trunc(x) || math.Abs(x) > maxExactFloat {
		return 0, strconv.ErrRange
	}
	return x, nil
}

func parseFloat(text string) (float64, error) {
	digits := strings.TrimLeft(text, "+-")
	if digits == "" || digits[0] < '0' || digits[0] > '9' ||
		len(digits) > 1 && digits[0] == '0' && digits[1] != '.' {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)
}

func parseDuration(text string) (float64, error) {
	d, err := time.ParseDuration(text)
	return float64(d), err
}

// suggest is a hint at the nearest of the words, or the list of them.
func suggest(word string, words []string) string {
	best, bestDistance := "", len(word)/2+1
	for _, w := range words {
		if n := distance(word, w); n < bestDistance {
			best, bestDistance = w, n
		}
	}
	if best != "" {
		return fmt.Sprintf(": did you mean %s?", best)
	}
	return fmt.Sprintf(": the keys here are %s", strings.Join(words, ", "))
}

// distance is how many letters must be added, dropped or changed to turn a into b
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
