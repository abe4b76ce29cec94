package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

const (
	rulesFile     = "prometheus/rules.yml"
	operationsDoc = "../docs/operations.md"
)

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string  `json:"name"`
			Rules []alert `json:"rules"`
		} `json:"groups"`
	}
	require.NoError(t, yaml.UnmarshalStrict([]byte(read(t, rulesFile)), &file))
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	require.NotEmpty(t, all)
	return all
}

// TestRules: the rules are valid, and their own tests pass.
func TestRules(t *testing.T) {
	promtool(t, "check", "rules", rulesFile)
	promtool(t, "test", "rules", "prometheus/rules_test.yml")
}

// TestEveryAlertIsSeenToFireAndToBeSilent, in the rules' tests.
func TestEveryAlertIsSeenToFireAndToBeSilent(t *testing.T) {
	var file struct {
		RuleFiles          []string `json:"rule_files"`
		EvaluationInterval string   `json:"evaluation_interval"`
		Tests              []struct {
			Name        string `json:"name"`
			Interval    string `json:"interval"`
			InputSeries []any  `json:"input_series"`
			Cases       []struct {
				EvalTime string `json:"eval_time"`
				Alert    string `json:"alertname"`
				Fires    []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	require.NoError(t, yaml.UnmarshalStrict([]byte(read(t, "prometheus/rules_test.yml")), &file))
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			if len(c.Fires) > 0 {
				fires[c.Alert] = true
			} else {
				silent[c.Alert] = true
			}
		}
	}
	for _, a := range alerts(t) {
		require.True(t, fires[a.Alert], "no test has %s fire", a.Alert)
		require.True(t, silent[a.Alert], "no test has %s silent", a.Alert)
	}
}

// TestEveryAlertIsExplained: a heading in the operators' guide, to which it points, with
// what it means and what to do.
func TestEveryAlertIsExplained(t *testing.T) {
	sections := map[string]string{}
	for _, part := range regexp.MustCompile(`(?m)^### `).Split(read(t, operationsDoc), -1)[1:] {
		title, body, _ := strings.Cut(part, "\n")
		body, _, _ = strings.Cut(body, "\n## ")
		sections[title] = body
	}
	known := map[string]bool{}
	for _, a := range alerts(t) {
		known[a.Alert] = true
		require.Equal(t, "docs/operations.md#"+strings.ToLower(a.Alert), a.Annotations["runbook_url"], a.Alert)
		require.NotEmpty(t, a.Annotations["summary"], a.Alert)
		require.NotEmpty(t, a.Annotations["description"], a.Alert)
		require.Contains(t, []string{"page", "ticket"}, a.Labels["severity"], a.Alert)
		for _, part := range []string{"**Means**", "**Look**", "**Do**"} {
			require.Contains(t, sections[a.Alert], part, "%s in %s", a.Alert, operationsDoc)
		}
	}
	for title := range sections {
		if strings.HasPrefix(title, "Flashgate") {
			require.True(t, known[title], "%s explains %s, which is no alert", operationsDoc, title)
		}
	}
}

// TestPrometheusConfigs: both are valid, and their jobs have the names that rules and
// panels know.
func TestPrometheusConfigs(t *testing.T) {
	promtool(t, "check", "config", "--syntax-only", "prometheus/prometheus.yml")
	type job struct {
		Name  string `json:"job_name"`
		Token struct {
			File string `json:"credentials_file"`
		} `json:"authorization"`
		DNS []struct {
			Names []string `json:"names"`
			Port  int      `json:"port"`
		} `json:"dns_sd_configs"`
	}
	var file struct {
		RuleFiles []string `json:"rule_files"`
		Jobs      []job    `json:"scrape_configs"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "prometheus/prometheus.yml")), &file))
	require.Equal(t, []string{filepath.Base(rulesFile)}, file.RuleFiles)
	var jobs []string
	for _, j := range file.Jobs {
		if role, ok := strings.CutPrefix(j.Name, "flashgate-"); ok {
			jobs = append(jobs, j.Name)
			require.Equal(t, role, j.DNS[0].Names[0], "a service of compose.yaml")
			require.Equal(t, 9090, j.DNS[0].Port)
			require.Equal(t, "/run/secrets/flashgate-admin-token", j.Token.File)
		}
	}
	for _, a := range alerts(t) {
		for _, m := range regexp.MustCompile(`job="([^"]+)"`).FindAllStringSubmatch(a.Expr, -1) {
			require.True(t, slices.Contains(jobs, m[1]), "%s names job %s", a.Alert, m[1])
		}
	}

	// Debian's promtool is built without the discovery of Kubernetes: the rest is checked.
	var discovered map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "prometheus/kubernetes.yml")), &discovered))
	for _, j := range discovered["scrape_configs"].([]any) {
		j := j.(map[string]any)
		require.NotEmpty(t, j["kubernetes_sd_configs"])
		delete(j, "kubernetes_sd_configs")
	}
	text, err := yaml.Marshal(discovered)
	require.NoError(t, err)
	rest := filepath.Join(t.TempDir(), "prometheus.yml")
	require.NoError(t, os.WriteFile(rest, text, 0o600))
	promtool(t, "check", "config", "--syntax-only", rest)
}
