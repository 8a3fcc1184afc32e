package vllm

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wrapper plays docker run -p OUTSIDE:INSIDE --name NAME IMAGE, and docker stop NAME: the server runs in a session of
// its own, so that a signal to the wrapper or to its group does not reach it, and behind a mapped port. What the
// wrapper is given behind IMAGE goes to the server.
const wrapper = `#!/bin/sh
dir=$(dirname "$0")
case $1 in
run)
  ports=$3 name=$5
  shift 6
  echo "$ports" > "$dir/$name.ports"
  echo "$@" > "$dir/$name.args"
  KVTUNE_FAKE_OUTSIDE=${ports%:*} setsid "$KVTUNE_FAKE" "$@" &
  echo $! > "$dir/$name.pid"
  [ "$KVTUNE_FAKE_WRAPPER" != detaches ] || { echo "$name"; exit 0; }
  [ "$KVTUNE_FAKE_WRAPPER" != fails ] || { echo "docker: no space left on device." >&2; exit 125; }
  trap "" TERM
  wait
  ;;
stop)
  [ -e "$dir/$2.pid" ] || { echo "Error: No such container: $2" >&2; exit 1; }
  kill "$(cat "$dir/$2.pid")"
  echo "$2" >> "$dir/stopped"
  ;;
esac
`

// wrapped makes the wrapper, and options that launch the fake server with it. The names of containers have the port.
func wrapped(t *testing.T, mode string) (dir string, opt LaunchOptions) {
	t.Helper()
	dir = t.TempDir()
	docker := filepath.Join(dir, "docker")
	if err := os.WriteFile(docker, []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, LaunchOptions{
		Argv:        []string{docker, "run", "-p", "{port}:8000", "--name", "vllm-{port}", "image"},
		StopCommand: []string{docker, "stop", "vllm-{port}"}, Grace: 5 * time.Second,
		Model: "tiny", Extra: []string{"--host", "0.0.0.0", "--port", "8000"}, LogPath: filepath.Join(dir, "server.log"),
		Env: []string{"KVTUNE_FAKE=" + os.Args[0], "KVTUNE_FAKE_SERVER=serve", "KVTUNE_FAKE_WRAPPER=" + mode},
	}
}

// inside is the process of the one server that the wrapper has started, and its name.
func inside(t *testing.T, dir string) (pid int, name string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
	if len(files) != 1 {
		t.Fatalf("%d servers were started, want 1", len(files))
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		t.Fatal(err)
	}
	return pid, strings.TrimSuffix(filepath.Base(files[0]), ".pid")
}

func TestLaunchThroughAWrapper(t *testing.T) {
	dir, opt := wrapped(t, "")
	p, err := Launch(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	pid, name := inside(t, dir)
	port := p.URL()[strings.LastIndex(p.URL(), ":")+1:]
	if resp, err := http.Get(p.URL() + "/health"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("health: %v", err)
	}
	ports, _ := os.ReadFile(filepath.Join(dir, name+".ports"))
	args, _ := os.ReadFile(filepath.Join(dir, name+".args"))
	if want := port + ":8000\n"; port == "8000" || name != "vllm-"+port || string(ports) != want {
		t.Errorf("%s was started with ports %q and is awaited at %s", name, ports, p.URL())
	}
	if want := "tiny --host 0.0.0.0 --port 8000\n"; string(args) != want {
		t.Errorf("the server got %q, want %q", args, want)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	gone(t, pid)
	if stopped, _ := os.ReadFile(filepath.Join(dir, "stopped")); string(stopped) != name+"\n" {
		t.Errorf("stopped %q, want %s", stopped, name)
	}
}

// A wrapper that ends leaves a server behind, which the stop command ends all the same.
func TestWrapperDies(t *testing.T) {
	for mode, want := range map[string][2]string{
		"detaches": {"exit status 0", "must run until the server ends (docker run without --detach)"},
		"fails":    {"exit status 125", "docker: no space left on device."},
	} {
		dir, opt := wrapped(t, mode)
		_, err := Launch(t.Context(), opt)
		var died *DiedError
		if !errors.As(err, &died) || died.State != want[0] || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("%s: %v", mode, err)
		}
		pid, _ := inside(t, dir)
		gone(t, pid)
	}
	_, err := Launch(t.Context(), LaunchOptions{Argv: []string{"no-such-docker", "run", "-p", "{port}:{port}"}})
	if want := `cannot start "no-such-docker"`; err == nil || !strings.Contains(err.Error(), want) ||
		strings.Contains(err.Error(), "pip") {
		t.Error(err)
	}
}

// The version that a wrapped command tells: by its image's tag, or by itself, with a port of its own.
func TestVersionThroughAWrapper(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "srun")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncase $* in *{port}*) exit 1;; esac\necho 0.31.2\n"),
		0o755); err != nil {
		t.Fatal(err)
	}
	for want, argv := range map[string][]string{
		"0.31.2": {script, "--export=PORT={port}", "vllm", "serve"},
		"0.32.0": {"docker", "run", "-p", "{port}:8000", "vllm/vllm-openai:v0.32.0"},
	} {
		if got, err := Version(t.Context(), argv); err != nil || got != want {
			t.Errorf("%v: %q, %v", argv, got, err)
		}
	}
}
