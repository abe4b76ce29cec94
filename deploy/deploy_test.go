// Package deploy_test holds what operators are given against the program they run: the
// manifests, compose.yaml, alert rules, dashboard and docs/operations.md name nothing that
// is not there.
package deploy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/cli"
	"flashgate/internal/config"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// promtool is Debian's, which `make install` sees to.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("promtool", args...).CombinedOutput()
	require.NoError(t, err, "promtool %s\n%s", strings.Join(args, " "), out)
}

// flashgate runs a command of the program in this process.
func flashgate(args ...string) (code int, output string) {
	var out bytes.Buffer
	code = cli.Run(args, &out, &out)
	return code, out.String()
}

// containerFolder is where both kinds of deployment mount the configs.
const containerFolder = "/etc/flashgate/"

// loadConfig reads a config of a container as the daemon in it would, with the limits
// file of this folder in place of the mounted one.
func loadConfig(t *testing.T, path, limits string) *config.Config {
	t.Helper()
	limits, err := filepath.Abs(limits)
	require.NoError(t, err)
	text := read(t, path)
	mounted := "limits: " + containerFolder + "limits/limits.yaml\n"
	require.Contains(t, text, mounted, "a folder that is mounted as one")
	copied := filepath.Join(t.TempDir(), filepath.Base(path))
	require.NoError(t, os.WriteFile(copied, []byte(strings.Replace(text, mounted, "limits: "+limits+"\n", 1)), 0o600))
	c, err := config.Load(copied)
	require.NoError(t, err)
	return c
}

var (
	envReference  = regexp.MustCompile(`\{env: (\w+)\}`)
	fileReference = regexp.MustCompile(`\{file: (\S+)\}`)
)

// references are what a config says that its secrets are in.
func references(of *regexp.Regexp, text string) []string {
	var found []string
	for _, m := range of.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// requireCommand holds a container's arguments: a daemon or job, and its config.
func requireCommand(t *testing.T, args []string) {
	t.Helper()
	require.Len(t, args, 3)
	require.Equal(t, []string{"--config", containerFolder + "flashgate.yaml"}, args[1:])
	code, out := flashgate(args[0], "--help")
	require.Zero(t, code, out)
	require.Contains(t, out, "flashgate "+args[0]+" [flags]")
}

// TestDocumentedCommands: what docs tell operators to type exists, with each flag.
func TestDocumentedCommands(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```")
	flag := regexp.MustCompile(`--[a-z-]+`)
	seen := 0
	for _, file := range []string{"../docs/operations.md", "README.md"} {
		for _, block := range blocks.FindAllStringSubmatch(read(t, file), -1) {
			text := strings.ReplaceAll(block[1], "\\\n", " ")
			for line := range strings.Lines(text) {
				line, _, _ = strings.Cut(line, " #")
				_, command, ok := strings.Cut(" "+line, " flashgate ")
				if !ok || strings.Contains(line, "kubectl ") || strings.Contains(line, "docker build") {
					continue
				}
				command, _, _ = strings.Cut(command, " && ")
				command, _, _ = strings.Cut(command, " | ")
				var words []string
				for _, word := range strings.Fields(command) {
					if !regexp.MustCompile(`^[a-z]+$`).MatchString(word) {
						break
					}
					words = append(words, word)
				}
				// The longest run of words that is a command: the rest are its arguments.
				help := ""
				for len(words) > 0 && help == "" {
					if _, out := flashgate(append(words, "--help")...); strings.Contains(out, "flashgate "+strings.Join(words, " ")) {
						help = out
					} else {
						words = words[:len(words)-1]
					}
				}
				require.NotEmpty(t, help, "%s: %s", file, line)
				for _, f := range flag.FindAllString(command, -1) {
					require.Contains(t, help, f, "%s: %s", file, line)
				}
				seen++
			}
		}
	}
	require.Greater(t, seen, 20, "commands are found at all")
}
