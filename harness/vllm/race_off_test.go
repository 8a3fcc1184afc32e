//go:build !race

package vllm

const underRace = false
