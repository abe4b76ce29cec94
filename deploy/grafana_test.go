package deploy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// dashboard is what of Grafana's model is used here.
type dashboard struct {
	UID        string  `json:"uid"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Type       string `json:"type"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

type panel struct {
	ID    int    `json:"id"`
	Type  string `json:"type"`
	Title string `json:"title"`
	Grid  struct {
		H, W, X, Y int
	} `json:"gridPos"`
	Targets []struct {
		Ref        string `json:"refId"`
		Expr       string `json:"expr"`
		Datasource struct {
			UID string `json:"uid"`
		} `json:"datasource"`
	} `json:"targets"`
}

func readDashboard(t *testing.T) *dashboard {
	t.Helper()
	d := &dashboard{}
	require.NoError(t, json.Unmarshal([]byte(read(t, "grafana/dashboards/flashgate.json")), d))
	return d
}

// TestDashboard: rows in the order of a sale's way, panels that stand beside each other,
// and queries that parse.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	var rows []string
	ids := map[int]bool{}
	var rules strings.Builder
	rules.WriteString("groups:\n- name: panels\n  rules:\n")
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], "id %d is there twice", p.ID)
		ids[p.ID] = true
		for x := p.Grid.X; x < p.Grid.X+p.Grid.W; x++ {
			for y := p.Grid.Y; y < p.Grid.Y+p.Grid.H; y++ {
				require.Empty(t, taken[[2]int{x, y}], "%s stands on another", p.Title)
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			require.Equal(t, "${datasource}", target.Datasource.UID, p.Title)
			query := strings.ReplaceAll(target.Expr, "$__rate_interval", "1m")
			text, err := json.Marshal(query) // JSON is YAML
			require.NoError(t, err)
			fmt.Fprintf(&rules, "  - record: panel:%d:%s\n    expr: %s\n", p.ID, target.Ref, text)
		}
	}
	require.Equal(t, []string{
		"Shoppers", "The sale", "The protocol and the bus", "Persisting", "Reconciling",
		"Limits and breakers", "Engines, as the daemons see them", "Runtime",
	}, rows)
	file := filepath.Join(t.TempDir(), "panels.yml")
	require.NoError(t, os.WriteFile(file, []byte(rules.String()), 0o600))
	promtool(t, "check", "rules", file)
	require.Contains(t, read(t, "grafana/provisioning/datasources/prometheus.yaml"), "uid: prometheus\n", "the variable's default")
	require.Contains(t, read(t, "grafana/dashboards/flashgate.json"), `"value": "prometheus"`)
}
