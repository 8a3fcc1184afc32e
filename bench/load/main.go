// Load measures load generators: kvtune's own and others, each against the same static server on this machine, the
// client pinned to one core and the server to another. `make bench-load` runs it.
//
//	load serve    a server that answers with the same events, on time, and notes when it did
//	load client   kvtune's generator in a process of its own, so that it can be pinned
//	load compare  all of them, and the table in bench/results/load
package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const unixTerm = syscall.SIGTERM

func main() {
	err := errors.New("usage: load serve|client|compare FLAGS")
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve":
			err = serve(os.Args[2:])
		case "client":
			err = client(os.Args[2:])
		case "compare":
			err = compare(os.Args[2:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
