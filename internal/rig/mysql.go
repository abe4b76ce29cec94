package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Debian has real MySQL in its unstable distribution only. Its packages and the
// libraries they were built against are unpacked into a directory of their own,
// as any user, and the server is run with that directory's dynamic loader: the
// machine's own packages, its libc among them, stay as they are.

const (
	mysqlName  = "mysql"
	mysqlSuite = "sid"
	// mysqlTimeoutSeconds is for an index of 11 MB and packages of 65 MB; on a
	// good line both take 10 s.
	mysqlTimeoutSeconds = 240
	mysqlKeyring        = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

var mysqlPackages = []string{"mysql-server-core"}

// newMySQL finds the server under cache, and gets it there first if need be: the
// command line depends on what was unpacked.
func newMySQL(ctx context.Context, dir, cache string, port int, password string, progress progress) (*sqlServer, error) {
	root := filepath.Join(cache, "mysql")
	if err := fetchMySQL(ctx, root, progress); err != nil {
		return nil, err
	}
	loaders, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-*/ld-linux*.so.*"))
	if err != nil {
		return nil, err
	}
	if len(loaders) != 1 {
		return nil, fmt.Errorf("%s has %d dynamic loaders, not one", root, len(loaders))
	}
	program := []string{
		loaders[0], "--library-path", filepath.Dir(loaders[0]),
		filepath.Join(root, "usr/sbin/mysqld"),
	}
	basedir := "--basedir=" + filepath.Join(root, "usr")
	s := newSQLServer(dir, mysqlName, port, password, program, []string{
		basedir,
		"--mysqlx=OFF",             // one more port and socket
		"--secure-file-priv=NULL",  // Debian's default names a directory that is not there
		"--skip-log-bin",           // nobody replicates from it
		"--performance-schema=OFF", // 150 MB of memory
	})
	s.initialise = func(datadir string) []string {
		argv := slices.Concat(program, []string{"--no-defaults", "--initialize-insecure", basedir, "--datadir=" + datadir})
		return append(argv, asRoot()...)
	}
	return s, nil
}

func fetchMySQL(ctx context.Context, root string, progress progress) error {
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/mysqld")); err == nil {
		return nil
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := lookup(tool); err != nil {
			return fmt.Errorf("%s is needed to fetch it, and this machine has none", tool)
		}
	}
	progress(mysqlName, "fetching the server from Debian "+mysqlSuite+" into "+root+", this once", "")
	ctx, cancel := context.WithTimeout(ctx, mysqlTimeoutSeconds*time.Second)
	defer cancel()

	work := root + ".partial"
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	unpacked := filepath.Join(work, "root")
	for _, dir := range []string{"lists/partial", "archives/partial", "root"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return err
		}
	}
	mirrors, err := debianMirrors(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, mirror := range mirrors {
		if err = downloadMySQL(ctx, work, mirror); err == nil {
			break
		}
		failures = append(failures, fmt.Errorf("%s: %w", mirror, err))
	}
	if err != nil {
		return errors.Join(failures...)
	}
	archives, err := filepath.Glob(filepath.Join(work, "archives/*.deb"))
	if err != nil {
		return err
	}
	for _, archive := range archives {
		if _, err := command(ctx, "dpkg-deb", "-x", archive, unpacked); err != nil {
			return err
		}
	}
	if err := os.Rename(unpacked, root); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

var aptIndexURI = regexp.MustCompile(`(?m)^'(\S+)/dists/[^/']+/InRelease'`)

// debianMirrors are the archives that this machine takes its packages from.
func debianMirrors(ctx context.Context) ([]string, error) {
	out, err := command(ctx, "apt-get", "--print-uris", "update")
	if err != nil {
		return nil, err
	}
	var mirrors []string
	for _, match := range aptIndexURI.FindAllStringSubmatch(out, -1) {
		// The archive of security updates has no unstable distribution.
		if uri := match[1]; !slices.Contains(mirrors, uri) && !strings.HasSuffix(uri, "-security") {
			mirrors = append(mirrors, uri)
		}
	}
	if len(mirrors) == 0 {
		return nil, errors.New("apt has no package archive configured")
	}
	return mirrors, nil
}

// downloadMySQL fetches the packages and all they depend on into work/archives,
// with lists and a package status of its own.
func downloadMySQL(ctx context.Context, work, mirror string) error {
	source := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", mysqlKeyring, mirror, mysqlSuite)
	for name, text := range map[string]string{
		"sources.list": source,
		"status":       "", // nothing is installed: fetch every library, libc too
	} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	options := []string{"-qq"}
	for _, option := range []string{
		"Dir::Etc::sourcelist=" + filepath.Join(work, "sources.list"),
		"Dir::Etc::sourceparts=/dev/null",
		"Dir::Etc::preferences=/dev/null",
		"Dir::Etc::preferencesparts=/dev/null",
		"Dir::State::lists=" + filepath.Join(work, "lists"),
		"Dir::State::status=" + filepath.Join(work, "status"),
		"Dir::Cache=" + work,
		"Dir::Cache::archives=" + filepath.Join(work, "archives"),
		"Debug::NoLocking=true",
		"APT::Install-Recommends=false",
		"APT::Sandbox::User=", // the sandbox's user may not write here
		"Acquire::Languages=none",
		"Acquire::Retries=2",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	} {
		options = append(options, "-o", option)
	}
	if _, err := command(ctx, "apt-get", append(options, "update", "--error-on=any")...); err != nil {
		return err
	}
	install := append(options, "-y", "--download-only", "install")
	_, err := command(ctx, "apt-get", append(install, mysqlPackages...)...)
	return err
}

// command runs a tool and returns its output, which an error quotes.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return string(out), nil
}
