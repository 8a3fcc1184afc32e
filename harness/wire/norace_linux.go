//go:build !race && linux && (amd64 || arm64)

package wire

func heard(uintptr) {}
