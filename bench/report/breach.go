package report

import "fmt"

// maxExamples is how many cases of one breach are shown: enough to look for them.
const maxExamples = 3

// A Breach is a rule that the answers broke. Numbers in brackets are the invariants
// of ARCHITECTURE.md.
type Breach struct {
	Rule     string   `json:"rule"`
	Count    int      `json:"count"`
	Examples []string `json:"examples,omitempty"`
}

// Breaches is what a run broke, in the order of discovery.
type Breaches []Breach

// Add counts a case of a broken rule, and keeps the first few as examples.
func (bs *Breaches) Add(rule, format string, args ...any) {
	for i := range *bs {
		if b := &(*bs)[i]; b.Rule == rule {
			b.Count++
			if len(b.Examples) < maxExamples {
				b.Examples = append(b.Examples, fmt.Sprintf(format, args...))
			}
			return
		}
	}
	*bs = append(*bs, Breach{Rule: rule, Count: 1, Examples: []string{fmt.Sprintf(format, args...)}})
}
