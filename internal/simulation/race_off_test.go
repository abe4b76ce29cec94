//go:build !race

package simulation

// What is played when nothing is asked for: 10 s on two cores.
const histories = 20_000
