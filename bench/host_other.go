//go:build !cgo

package bench

import "errors"

// openHost fails: the kernels of the host are in C.
func openHost() (*Machine, error) {
	return nil, errors.New("the host backend is not in this kvtune: it was built without cgo")
}
