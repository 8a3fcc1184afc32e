package profile_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"kvtune/harness/load"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
)

// The API key goes to the server and nowhere else: into no file of a run, not even when a gateway's errors repeat it.
func TestAPIKeyIsKeptOutOfArchives(t *testing.T) {
	const key = "sk-sesame-0123456789"
	var asked, withKey, posted atomic.Int32
	gateway := serve(t, nil, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if r.Header.Get("Authorization") == "Bearer "+key {
				withKey.Add(1)
			}
			if r.Method == http.MethodPost && posted.Add(1)%2 == 0 {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprintf(w, `{"error":{"message":"the key %s has no quota"}}`, r.Header.Get("Authorization"))
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	srv := connect(t, gateway, vllm.Options{APIKey: key})
	opt := options(t, srv, decode(50, 3, 4))
	var said strings.Builder
	opt.OnProgress = func(p profile.Progress) { fmt.Fprintf(&said, "%+v\n", p) }
	out, err := profile.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if asked.Load() != withKey.Load() {
		t.Errorf("%d of %d requests had the key", withKey.Load(), asked.Load())
	}
	hidden := false
	for _, r := range out.Records {
		hidden = hidden || strings.Contains(r.Error, "Bearer [API key] has no quota")
	}
	if !hidden {
		t.Error("no error of the gateway was kept")
	}
	fmt.Fprintf(&said, "%+v %+v", out.Result, load.Run{Records: out.Records})
	files := 0
	err = filepath.WalkDir(opt.Folder.Dir(), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".zst") {
			z, err := zstd.NewReader(bytes.NewReader(data))
			if err != nil {
				return err
			}
			defer z.Close()
			if data, err = io.ReadAll(z); err != nil {
				return err
			}
		}
		if bytes.Contains(data, []byte("sesame")) {
			t.Errorf("%s holds the key", filepath.Base(path))
		}
		return nil
	})
	if err != nil || files < 4 {
		t.Errorf("%d files, %v", files, err)
	}
	if strings.Contains(said.String(), "sesame") {
		t.Error("the key was said")
	}
}
