//go:build race

package simulation

// A history runs on one goroutine at a time: under the race detector few are enough.
const histories = 2_000
