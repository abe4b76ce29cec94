package system

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Keys of a config file that a run changes in its copy.
var (
	keyListen    = []string{"listen"}
	KeyOperators = []string{"operators_listen"}
	KeyLimits    = []string{"limits"}
	keyBatchMax  = []string{"batch", "max"}
	keyData      = []string{"data_dir"}
	keyWatermark = []string{"reconciler", "watermark"}

	keyRedis       = []string{"redis", "addresses"}
	keyNameServers = []string{"rocketmq", "name_servers"}
	keyDSNVariable = []string{"mysql", "dsn", "env"}

	keyTopic         = []string{"rocketmq", "topic"}
	keyProducerGroup = []string{"rocketmq", "producer_group"}
	keyConsumerGroup = []string{"rocketmq", "consumer_group"}
)

// fileKeys are those whose values are paths, to be found from the copy's folder too.
var fileKeys = [][]string{KeyLimits, {"env_file"}, {"redis", "tls_ca_file"}}

// RaisedLimit is the largest value that a limits file may hold. One machine plays
// all shoppers here, from one address, which the limits are there to refuse.
const RaisedLimit = "100000000000"

// limitSuffixes end the keys of what is raised; other numbers stay as they are.
var limitSuffixes = []string{"rate", "burst", "qps"}

// Document is a YAML file under change; what is not changed stays as it was.
type Document struct {
	path string
	node yaml.Node
}

// ReadDocument reads a YAML file that is a mapping.
func ReadDocument(path string) (*Document, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := &Document{path: path}
	if err := yaml.Unmarshal(text, &d.node); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(d.node.Content) != 1 || d.node.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: want a mapping", path)
	}
	return d, nil
}

func (d *Document) write(path string) error {
	text, err := yaml.Marshal(&d.node)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// Get is the scalar under a path of keys, or "".
func (d *Document) Get(path []string) string {
	if node := d.at(path); node != nil {
		return node.Value
	}
	return ""
}

// List is the sequence of scalars under a path of keys, or nil.
func (d *Document) List(path []string) []string {
	node := d.at(path)
	if node == nil || node.Kind != yaml.SequenceNode {
		return nil
	}
	var out []string
	for _, item := range node.Content {
		out = append(out, item.Value)
	}
	return out
}

func (d *Document) at(path []string) *yaml.Node {
	node := d.node.Content[0]
	for _, key := range path {
		if node = child(node, key); node == nil {
			return nil
		}
	}
	return node
}

// set puts a scalar under a path of keys, which are made if they are not there.
func (d *Document) set(path []string, value string) error {
	node := d.node.Content[0]
	for _, key := range path[:len(path)-1] {
		next := child(node, key)
		if next == nil {
			next = &yaml.Node{Kind: yaml.MappingNode}
			node.Content = append(node.Content, scalar(key), next)
		}
		if next.Kind != yaml.MappingNode {
			return fmt.Errorf("%s:%d: %s is no mapping", d.path, next.Line, strings.Join(path, "."))
		}
		node = next
	}
	key := path[len(path)-1]
	if old := child(node, key); old != nil {
		*old = *scalar(value)
		return nil
	}
	node.Content = append(node.Content, scalar(key), scalar(value))
	return nil
}

func child(node *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}
	return nil
}

func scalar(value string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: value} }

// raiseLimits sets every limit of the document to the most there is, and returns
// how many there were.
func (d *Document) raiseLimits() int { return raise(d.node.Content[0]) }

func raise(node *yaml.Node) (raised int) {
	if node.Kind != yaml.MappingNode {
		for _, item := range node.Content {
			raised += raise(item)
		}
		return raised
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i].Value, node.Content[i+1]
		if value.Kind != yaml.ScalarNode {
			raised += raise(value)
			continue
		}
		for _, suffix := range limitSuffixes {
			if strings.HasSuffix(key, suffix) {
				value.Value, value.Tag, value.Style = RaisedLimit, "!!int", 0
				raised++
				break
			}
		}
	}
	return raised
}

// Setup is how the config of a run differs from the file it was given.
type Setup struct {
	listen, operators string // of the first daemon; "" = as given
	raiseLimits       bool
	batchMax          string // "" = as given
	Watermark         string // "" = as given
	dataDir           string // of embedded engines; "" = as given
	ownBus            bool   // topic and groups are those of a run that has its own
}

// WriteConfig writes a changed copy of a config file, and of its limits file, into
// dir and returns its path there.
func WriteConfig(from, dir, name string, s Setup) (string, error) {
	config, err := ReadDocument(from)
	if err != nil {
		return "", err
	}
	for _, key := range fileKeys {
		if value := config.Get(key); value != "" {
			value, err = filepath.Abs(fromConfig(from, value))
			err = errors.Join(err, config.set(key, value))
		}
		if err != nil {
			return "", err
		}
	}
	limits := ""
	if s.raiseLimits {
		limits = filepath.Join(dir, limitsName)
		if err := writeRaised(config.Get(KeyLimits), limits); err != nil {
			return "", err
		}
	}
	type change struct {
		key   []string
		value string
	}
	changes := []change{
		{keyListen, s.listen}, {KeyOperators, s.operators}, {KeyLimits, limits},
		{keyBatchMax, s.batchMax}, {keyWatermark, s.Watermark}, {keyData, s.dataDir},
	}
	if s.ownBus {
		changes = append(changes, change{keyTopic, ownTopic}, change{keyProducerGroup, ownProducerGroup}, change{keyConsumerGroup, ownConsumerGroup})
	}
	for _, change := range changes {
		if change.value == "" {
			continue
		}
		if err := config.set(change.key, change.value); err != nil {
			return "", err
		}
	}
	to := filepath.Join(dir, name)
	return to, config.write(to)
}

// fromConfig finds a file that a config names, as flashgate does: from the working
// directory, or else from the folder above the config's.
func fromConfig(config, path string) string {
	if _, err := os.Stat(path); err == nil || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(config), "..", path)
}

// limitsName is the limits file beside a run's config.
const limitsName = "limits.yaml"

// writeRaised writes a copy of a limits file with every limit raised.
func writeRaised(from, to string) error {
	limits, err := ReadDocument(from)
	if err != nil {
		return err
	}
	if limits.raiseLimits() == 0 {
		return fmt.Errorf("%s: no limit found (keys that end in %s)", from, strings.Join(limitSuffixes, ", "))
	}
	return limits.write(to)
}
