package deploy_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/glebarez/go-sqlite" // the embedded ledger, to break it
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
	"flashgate/internal/rig"
)

const (
	startTimeout = 4 * time.Minute // on a machine that is busy with everything else, too
	pollEvery    = 50 * time.Millisecond
)

// running is the program in a process of its own, with all three daemons in it.
type running struct {
	dir, operators, token string
}

// startProgram builds and starts it on embedded engines in a folder of its own.
func startProgram(t *testing.T) *running {
	t.Helper()
	r := &running{dir: t.TempDir()}
	program := filepath.Join(r.dir, "flashgate")
	out, err := exec.Command("go", "build", "-o", program, "flashgate").CombinedOutput()
	require.NoError(t, err, string(out))
	addresses, err := rig.FreeAddresses(2)
	require.NoError(t, err)
	r.operators = "http://" + addresses[1]
	require.NoError(t, os.Mkdir(filepath.Join(r.dir, "configs"), 0o755))
	for _, name := range []string{"embedded.yaml", "limits.yaml"} {
		text := regexp.MustCompile(`(?m)^  total: \d+`).ReplaceAllString(read(t, "../configs/"+name), "  total: 10000")
		require.NoError(t, os.WriteFile(filepath.Join(r.dir, "configs", name), []byte(text), 0o600))
	}
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FLASHGATE_") { // secrets of whoever runs the tests are not the tests'
			env = append(env, v)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "--listen", addresses[0], "--operators-listen", addresses[1])
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = r.dir, env, &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed, and so an error
		if t.Failed() {
			t.Logf("the program said:\n%s", log.String())
		}
	})
	require.Eventually(t, func() bool { return r.status("/readyz") == http.StatusOK }, startTimeout, pollEvery, "it is ready")
	secrets := read(t, filepath.Join(r.dir, "data", "env"))
	r.token = regexp.MustCompile(config.EnvAdminToken + `='([^']+)'`).FindStringSubmatch(secrets)[1]

	cmd = exec.Command(program, "token", "--user", "u", "--config", "configs/embedded.yaml")
	cmd.Dir, cmd.Env = r.dir, env
	user, err := cmd.Output()
	require.NoError(t, err)
	code, body := r.get(t, http.MethodPost, "http://"+addresses[0]+"/v1/sales/demo/purchases", strings.TrimSpace(string(user)))
	require.Equal(t, http.StatusAccepted, code, body)
	return r
}

// status is that of a request without a token, 0 without an answer.
func (r *running) status(path string) int {
	answer, err := http.Get(r.operators + path)
	if err != nil {
		return 0
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

func (r *running) get(t *testing.T, method, url, token string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	q.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(q)
	require.NoError(t, err)
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(body)
}

// families is a scrape.
type families map[string]*dto.MetricFamily

func (r *running) scrape(t *testing.T) families {
	t.Helper()
	code, body := r.get(t, http.MethodGet, r.operators+"/metrics", r.token)
	require.Equal(t, http.StatusOK, code)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	f, err := parser.TextToMetricFamilies(strings.NewReader(body))
	require.NoError(t, err)
	return f
}

// lose makes more units locked in the ledger than its orders have, and more than the
// fuse lets a reconcile repair: what shows only in trouble is in the scrape then.
func (r *running) lose(t *testing.T) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(r.dir, "data", "ledger.db")+"?_pragma=busy_timeout(30000)")
	require.NoError(t, err)
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	done, err := db.ExecContext(ctx, "UPDATE inventory SET available = available - 500, locked = locked + 500 WHERE sale_id = 'demo'")
	require.NoError(t, err)
	rows, err := done.RowsAffected()
	require.NoError(t, err)
	require.EqualValues(t, 1, rows)
}

// expression is a query, and where it stands.
type expression struct{ where, text string }

func expressions(t *testing.T) []expression {
	t.Helper()
	var all []expression
	for _, a := range alerts(t) {
		all = append(all, expression{rulesFile + ": " + a.Alert, a.Expr})
	}
	d := readDashboard(t)
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, expression{"dashboard: " + p.Title, target.Expr})
		}
	}
	for _, v := range d.Templating.List {
		if m := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(v.Definition); m != nil {
			all = append(all, expression{"dashboard: variable " + v.Name, m[1] + "{" + m[2] + `=~".*"}`})
		}
	}
	return all
}

var (
	quoted      = regexp.MustCompile(`"[^"]*"`)
	grouping    = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right) ?\([^)]*\)`)
	vectorRange = regexp.MustCompile(`\[[^\]]*\]`)
	selector    = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}`)
	matcher     = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	word        = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*(\s*\()?`)
	groupLabels = regexp.MustCompile(`\b(?:by|on) ?\(([^)]*)\)`)
)

// targetLabels are Prometheus's own, of the target and of a histogram's bucket.
var targetLabels = []string{"job", "instance", "le"}

// names are the metrics that a query names.
func names(query string) []string {
	bare := quoted.ReplaceAllString(query, "")
	bare = selector.ReplaceAllString(bare, "$1")
	bare = grouping.ReplaceAllString(bare, "")
	bare = vectorRange.ReplaceAllString(bare, "")
	var found []string
	for _, w := range word.FindAllString(bare, -1) {
		if !strings.HasSuffix(w, "(") && !slices.Contains([]string{"and", "or", "unless", "bool", "offset", "e"}, w) {
			found = append(found, w)
		}
	}
	return found
}

// family is the one that a series' name is of: a histogram has three.
func (f families) family(name string) *dto.MetricFamily {
	if found := f[name]; found != nil {
		return found
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		base, ok := strings.CutSuffix(name, suffix)
		if found := f[base]; ok && found != nil && found.GetType() == dto.MetricType_HISTOGRAM {
			return found
		}
	}
	return nil
}

// lacks says what of a query is in no scrape: a metric, a label, or a label's value.
func (f families) lacks(query string) string {
	for _, name := range names(query) {
		if name != "up" && f.family(name) == nil {
			return "metric " + name
		}
	}
	known := slices.Clone(targetLabels)
	for _, name := range names(query) {
		for _, m := range f.family(name).GetMetric() {
			for _, l := range m.GetLabel() {
				known = append(known, l.GetName())
			}
		}
	}
	for _, m := range groupLabels.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(m[1], ", ") {
			if !slices.Contains(known, label) {
				return "label " + label
			}
		}
	}
	for _, s := range selector.FindAllStringSubmatch(query, -1) {
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			label, operator, value := m[1], m[2], m[3]
			if slices.Contains(targetLabels, label) || strings.HasPrefix(value, "$") {
				continue
			}
			var values []string
			for _, series := range f.family(s[1]).GetMetric() {
				for _, l := range series.GetLabel() {
					if l.GetName() == label {
						values = append(values, l.GetValue())
					}
				}
				if f.family(s[1]).GetType() == dto.MetricType_SUMMARY && label == "quantile" {
					for _, q := range series.GetSummary().GetQuantile() {
						values = append(values, fmt.Sprint(q.GetQuantile()))
					}
				}
			}
			if strings.HasPrefix(operator, "=") {
				for want := range strings.SplitSeq(value, "|") {
					if want != ".*" && !slices.Contains(values, want) {
						return fmt.Sprintf("%s{%s=%q}", s[1], label, want)
					}
				}
			}
			if len(values) == 0 {
				return fmt.Sprintf("label %s of %s", label, s[1])
			}
		}
	}
	return ""
}

// TestEveryMetricIsInAScrape of the running program: those of all alerts and all panels,
// with the labels that they select and group by. And what probes ask answers.
func TestEveryMetricIsInAScrape(t *testing.T) {
	r := startProgram(t)
	for _, path := range probePaths {
		require.Equal(t, http.StatusOK, r.status(path), path)
	}
	require.Equal(t, http.StatusUnauthorized, r.status("/metrics"), "a scrape wants the token")
	r.lose(t)
	all := expressions(t)
	require.Greater(t, len(all), 60)
	lacking := map[expression]string{}
	complete := func() bool {
		f := r.scrape(t)
		clear(lacking)
		for _, e := range all {
			if lack := f.lacks(e.text); lack != "" {
				lacking[e] = lack
			}
		}
		return len(lacking) == 0
	}
	// What is in no scrape at once may come with a reconcile, for which loops must go round.
	deadline := time.Now().Add(startTimeout)
	for !complete() && time.Now().Before(deadline) {
		waitFor(t, pollEvery*10)
	}
	for e, lack := range lacking {
		t.Errorf("%s: no scrape has %s", e.where, lack)
	}
}

func waitFor(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
	case <-time.After(d):
	}
}

// TestNames: the reading of queries that the test above stands on.
func TestNames(t *testing.T) {
	for query, want := range map[string][]string{
		`sum by (route) (rate(a_total{code=~"X|Y"}[1m])) / b > 0.01 * c{d="e"}`: {"a_total", "b", "c"},
		`time() - max(a) > 7200`:           {"a"},
		`absent(up{job="x"}) or absent(a)`: {"up", "a"},
		`histogram_quantile(0.9, sum by (le) (rate(a_bucket[$__rate_interval])))`: {"a_bucket"},
	} {
		require.Equal(t, want, names(query), query)
	}
}
