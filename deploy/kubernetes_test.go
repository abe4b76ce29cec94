package deploy_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"flashgate/internal/config"
)

// kustomization is what of one is used here; an unknown field is an error.
type kustomization struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Namespace  string   `json:"namespace"`
	Resources  []string `json:"resources"`
	ConfigMaps []struct {
		Name    string   `json:"name"`
		Files   []string `json:"files"`
		Options struct {
			DisableNameSuffixHash bool `json:"disableNameSuffixHash"`
		} `json:"options"`
	} `json:"configMapGenerator"`
	Images []struct {
		Name    string `json:"name"`
		NewName string `json:"newName"`
		NewTag  string `json:"newTag"`
	} `json:"images"`
}

// cluster is everything that is applied.
type cluster struct {
	kustomization
	deployments []*apps.Deployment
	jobs        []*batch.Job
	services    []*core.Service
	budgets     []*policy.PodDisruptionBudget
	scalers     []*autoscaling.HorizontalPodAutoscaler
	networks    []*networking.NetworkPolicy
	namespaces  []*core.Namespace
	secrets     []*core.Secret
}

const manifests = "kubernetes"

// decode reads each document of a file into the type that it names; what the type has not
// is an error, and so is a key that is there twice.
func (c *cluster) decode(t *testing.T, file string) {
	t.Helper()
	for i, text := range strings.Split("\n"+read(t, filepath.Join(manifests, file)), "\n---\n") {
		var kind meta.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(text), &kind), "%s, document %d", file, i+1)
		var into any
		switch kind.APIVersion + "/" + kind.Kind {
		case "apps/v1/Deployment":
			into = add(&c.deployments)
		case "batch/v1/Job":
			into = add(&c.jobs)
		case "v1/Service":
			into = add(&c.services)
		case "policy/v1/PodDisruptionBudget":
			into = add(&c.budgets)
		case "autoscaling/v2/HorizontalPodAutoscaler":
			into = add(&c.scalers)
		case "networking.k8s.io/v1/NetworkPolicy":
			into = add(&c.networks)
		case "v1/Namespace":
			into = add(&c.namespaces)
		case "v1/Secret":
			into = add(&c.secrets)
		default:
			t.Fatalf("%s, document %d: %s/%s is not known here", file, i+1, kind.APIVersion, kind.Kind)
		}
		require.NoError(t, yaml.UnmarshalStrict([]byte(text), into), "%s, document %d", file, i+1)
	}
}

func add[T any](to *[]*T) *T {
	*to = append(*to, new(T))
	return (*to)[len(*to)-1]
}

func readCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{}
	require.NoError(t, yaml.UnmarshalStrict([]byte(read(t, filepath.Join(manifests, "kustomization.yaml"))), &c.kustomization))
	for _, file := range c.Resources {
		c.decode(t, file)
	}
	require.Empty(t, c.secrets, "a secret is never a manifest")
	c.decode(t, "secret.example.yaml")
	return c
}

// TestKustomizationHasEveryFile, and no manifest lies about that is not applied.
func TestKustomizationHasEveryFile(t *testing.T) {
	c := readCluster(t)
	used := slices.Concat([]string{"kustomization.yaml", "secret.example.yaml"}, c.Resources)
	for _, m := range c.ConfigMaps {
		used = append(used, m.Files...)
	}
	found, err := os.ReadDir(manifests)
	require.NoError(t, err)
	for _, f := range found {
		require.Contains(t, used, f.Name())
	}
	require.Len(t, c.namespaces, 1)
	require.Equal(t, c.Namespace, c.namespaces[0].Name)
	require.Equal(t, c.Namespace, c.secrets[0].Namespace)
	var roles []string
	for _, d := range c.deployments {
		roles = append(roles, d.Name)
	}
	require.ElementsMatch(t, []string{"gateway", "worker", "reconciler"}, roles)
}

// pods are the pods that are started, by what starts them.
func (c *cluster) pods() map[string]*core.PodTemplateSpec {
	all := map[string]*core.PodTemplateSpec{}
	for _, d := range c.deployments {
		all[d.Name] = &d.Spec.Template
	}
	for _, j := range c.jobs {
		all[j.Name] = &j.Spec.Template
	}
	return all
}

// TestPodsMayDoNothingButTheirWork is the standard "restricted", and a bound on memory.
func TestPodsMayDoNothingButTheirWork(t *testing.T) {
	for name, pod := range readCluster(t).pods() {
		s := pod.Spec
		require.NotNil(t, s.AutomountServiceAccountToken, name)
		require.False(t, *s.AutomountServiceAccountToken, name)
		require.True(t, *s.SecurityContext.RunAsNonRoot, name)
		require.Positive(t, *s.SecurityContext.RunAsUser, name)
		require.Equal(t, core.SeccompProfileTypeRuntimeDefault, s.SecurityContext.SeccompProfile.Type, name)
		require.Len(t, s.Containers, 1, name)
		c := s.Containers[0]
		require.Equal(t, "flashgate", c.Image, "%s: the image that the kustomization names", name)
		require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, name)
		require.False(t, *c.SecurityContext.AllowPrivilegeEscalation, name)
		require.Equal(t, []core.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop, name)
		require.Empty(t, c.SecurityContext.Capabilities.Add, name)
		require.False(t, c.Resources.Requests.Cpu().IsZero(), name)
		require.False(t, c.Resources.Requests.Memory().IsZero(), name)
		require.False(t, c.Resources.Limits.Memory().IsZero(), name)
		requireCommand(t, c.Args)
		for _, e := range c.Env { // of the runtime: secrets come as files
			require.Contains(t, []string{"GOMEMLIMIT", "GOMAXPROCS", "GOGC"}, e.Name, name)
			require.Less(t, mebibytes(t, e.Value), c.Resources.Limits.Memory().Value()>>20, "%s: %s", name, e.Name)
		}
	}
}

func mebibytes(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSuffix(text, "MiB"), 10, 64)
	require.NoError(t, err)
	return n
}

func clusterConfig(t *testing.T) *config.Config {
	t.Helper()
	return loadConfig(t, manifests+"/flashgate.yaml", manifests+"/limits.yaml")
}

// TestMountedConfigs: the files of the config maps are valid, are where the daemons look
// for them, and name secrets that the Secret has.
func TestMountedConfigs(t *testing.T) {
	c := readCluster(t)
	clusterConfig(t)
	maps := map[string][]string{}
	for _, m := range c.ConfigMaps {
		maps[m.Name] = m.Files
		require.Equal(t, m.Name == "flashgate-limits", m.Options.DisableNameSuffixHash,
			"%s: limits reach running gateways, a config rolls the daemons", m.Name)
	}
	require.Equal(t, map[string][]string{"flashgate-config": {"flashgate.yaml"}, "flashgate-limits": {"limits.yaml"}}, maps)
	text := read(t, manifests+"/flashgate.yaml")
	require.Empty(t, references(envReference, text), "secrets are files here")
	const secrets = "/run/secrets/flashgate/"
	var keys []string
	for _, path := range references(fileReference, text) {
		key, ok := strings.CutPrefix(path, secrets)
		require.True(t, ok, path)
		keys = append(keys, key)
		_, ok = c.secrets[0].StringData[key]
		require.True(t, ok, "the Secret has no key %s", key)
	}
	for key, value := range c.secrets[0].StringData {
		require.Contains(t, keys, key, "flashgate.yaml does not name it")
		require.Empty(t, value, "%s: an example of a secret ends up as one", key)
	}
	for name, pod := range c.pods() {
		volumes := map[string]core.Volume{}
		for _, v := range pod.Spec.Volumes {
			volumes[v.Name] = v
		}
		limits := false
		for _, m := range pod.Spec.Containers[0].VolumeMounts {
			v := volumes[m.Name]
			require.True(t, m.ReadOnly, "%s: %s", name, m.Name)
			switch {
			case v.Secret != nil:
				require.Equal(t, c.secrets[0].Name, v.Secret.SecretName)
				require.Equal(t, strings.TrimSuffix(secrets, "/"), m.MountPath)
			case v.ConfigMap != nil && v.ConfigMap.Name == "flashgate-limits":
				limits = true
				require.Equal(t, containerFolder+"limits", m.MountPath)
				require.Empty(t, m.SubPath, "%s: of a subPath a change never arrives", name)
			case v.ConfigMap != nil:
				require.Equal(t, []string{m.SubPath}, maps[v.ConfigMap.Name])
				require.Equal(t, containerFolder+m.SubPath, m.MountPath)
			default:
				t.Fatalf("%s: %s mounts nothing", name, m.Name)
			}
		}
		require.Equal(t, name == "gateway", limits, "%s: who keeps limits has them", name)
	}
}

// probePaths are those of the operators' port that want no token.
var probePaths = []string{"/healthz", "/readyz"}

// TestProbes: on the operators' port, and never such that engines which are away have a
// daemon killed, or every gateway taken out of service.
func TestProbes(t *testing.T) {
	listens := clusterConfig(t)
	_, port, err := net.SplitHostPort(listens.OperatorsListen)
	require.NoError(t, err)
	_, shoppers, err := net.SplitHostPort(listens.Listen)
	require.NoError(t, err)
	for _, d := range readCluster(t).deployments {
		c := d.Spec.Template.Spec.Containers[0]
		ports := map[string]string{}
		for _, p := range c.Ports {
			ports[p.Name] = strconv.Itoa(int(p.ContainerPort))
		}
		require.Equal(t, port, ports["operators"], d.Name)
		ready := "/readyz"
		if d.Name == "gateway" {
			require.Equal(t, shoppers, ports["http"])
			require.Equal(t, "/readyz", c.StartupProbe.HTTPGet.Path, "it serves once it has all")
			ready = "/healthz"
		}
		require.Equal(t, ready, c.ReadinessProbe.HTTPGet.Path, d.Name)
		require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path, d.Name)
		for _, p := range []*core.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p != nil {
				require.Equal(t, "operators", p.HTTPGet.Port.StrVal, d.Name)
				require.Contains(t, probePaths, p.HTTPGet.Path, d.Name)
			}
		}
	}
}

// operatorsDrain is what internal/operator gives the last of its own callers.
const operatorsDrain = 5 * time.Second

// TestPodsHaveTimeToEnd: longer than what a daemon may take by its config.
func TestPodsHaveTimeToEnd(t *testing.T) {
	c := clusterConfig(t)
	for _, d := range readCluster(t).deployments {
		spec := d.Spec.Template.Spec
		takes := operatorsDrain + c.Tracing.Timeout
		switch d.Name {
		case "gateway":
			wait := spec.Containers[0].Lifecycle.PreStop.Sleep
			require.NotNil(t, wait, "new connections are refused at once: first the endpoint must be gone")
			takes += time.Duration(wait.Seconds)*time.Second + c.Gateway.DrainTimeout + c.Gateway.RequestTimeout + c.Batch.ReleaseTimeout
		case "worker":
			takes += c.Worker.DrainTimeout + c.Worker.SettleTimeout
		case "reconciler":
			takes += c.Reconciler.StepTimeout
		}
		require.Less(t, takes, time.Duration(*spec.TerminationGracePeriodSeconds)*time.Second, d.Name)
	}
}

// TestSelectors: what selects pods selects those of one daemon.
func TestSelectors(t *testing.T) {
	c := readCluster(t)
	selects := func(s map[string]string) (names []string) {
		for name, pod := range c.pods() {
			if labels.SelectorFromSet(s).Matches(labels.Set(pod.Labels)) {
				names = append(names, name)
			}
		}
		return names
	}
	for _, d := range c.deployments {
		require.Equal(t, []string{d.Name}, selects(d.Spec.Selector.MatchLabels))
		require.NotEmpty(t, d.Spec.Template.Spec.TopologySpreadConstraints, d.Name)
		for _, s := range d.Spec.Template.Spec.TopologySpreadConstraints {
			require.Equal(t, []string{d.Name}, selects(s.LabelSelector.MatchLabels))
		}
	}
	budgeted := map[string]bool{}
	for _, b := range c.budgets {
		require.Equal(t, []string{b.Name}, selects(b.Spec.Selector.MatchLabels))
		require.NotNil(t, b.Spec.MaxUnavailable, b.Name)
		budgeted[b.Name] = true
	}
	require.Len(t, c.scalers, 1)
	target := c.scalers[0].Spec.ScaleTargetRef
	require.Equal(t, "apps/v1/Deployment/gateway", target.APIVersion+"/"+target.Kind+"/"+target.Name)
	for _, d := range c.deployments {
		require.True(t, budgeted[d.Name], d.Name)
		if d.Name == target.Name {
			require.Nil(t, d.Spec.Replicas, "each apply would undo the autoscaler's")
			continue
		}
		require.Greater(t, *d.Spec.Replicas, int32(1), d.Name)
		require.LessOrEqual(t, int(*d.Spec.Replicas), clusterConfig(t).RocketMQ.Queues, "more workers than queues")
	}
	for _, s := range c.services {
		if s.Spec.Type == core.ServiceTypeExternalName {
			continue
		}
		require.Equal(t, []string{s.Name}, selects(s.Spec.Selector))
		for _, p := range s.Spec.Ports {
			require.True(t, slices.ContainsFunc(c.pods()[s.Name].Spec.Containers[0].Ports, func(have core.ContainerPort) bool {
				return have.Name == p.TargetPort.StrVal
			}), "%s: no port %s", s.Name, p.TargetPort.StrVal)
		}
	}
}

// TestNetwork: the engines of the config have a service that says where they are, and a way
// out to their ports; in comes whoever must, and by default nobody.
func TestNetwork(t *testing.T) {
	c, config := readCluster(t), clusterConfig(t)
	external := map[string]bool{}
	for _, s := range c.services {
		external[s.Name] = s.Spec.Type == core.ServiceTypeExternalName && s.Spec.ExternalName != ""
	}
	open := func(port int32) bool {
		for _, n := range c.networks {
			for _, e := range n.Spec.Egress {
				for _, p := range e.Ports {
					last := p.Port.IntVal
					if p.EndPort != nil {
						last = *p.EndPort
					}
					if p.Port.IntVal <= port && port <= last {
						return true
					}
				}
			}
		}
		return false
	}
	for _, address := range slices.Concat(config.Redis.Addresses, config.RocketMQ.NameServers, []string{"mysql:3306", "x:10911"}) {
		host, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		n, err := strconv.ParseInt(port, 10, 32)
		require.NoError(t, err)
		require.True(t, open(int32(n)), "no way out to %s", address)
		require.True(t, external[host] || host == "x", "no service says where %s is", host)
	}
	closed := false
	for _, n := range c.networks {
		selector := labels.SelectorFromSet(n.Spec.PodSelector.MatchLabels)
		found := 0
		for _, pod := range c.pods() {
			if selector.Matches(labels.Set(pod.Labels)) {
				found++
			}
		}
		require.Positive(t, found, "%s is for no pod", n.Name)
		if len(n.Spec.PodSelector.MatchLabels) == 0 {
			closed = len(n.Spec.Ingress) == 0 && len(n.Spec.Egress) == 0 && len(n.Spec.PolicyTypes) == 2
		}
		for _, in := range n.Spec.Ingress {
			require.NotEmpty(t, in.From, n.Name)
			for _, p := range in.Ports {
				require.Contains(t, []string{"http", "operators"}, p.Port.StrVal, n.Name)
			}
		}
	}
	require.True(t, closed, "nothing is open but what a policy opens")
}
