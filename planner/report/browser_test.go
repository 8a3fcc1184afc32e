//go:build chromium

package report

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// browser is a headless Chromium that is spoken to in its DevTools protocol (version 1.3), over the pipes that
// --remote-debugging-pipe gives it: commands into its file descriptor 3, answers and events out of 4, each a JSON text
// that ends in a zero byte.
type browser struct {
	t       *testing.T
	to      *os.File
	from    *bufio.Reader
	id      int
	session string
	// events are those that came while an answer was waited for.
	events []message
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// open starts Chromium and loads a file in a window of a size.
func open(t *testing.T, file string, width, height int) *browser {
	t.Helper()
	program := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); program == "" && err == nil {
			program = path
		}
	}
	if program == "" {
		t.Fatal("no Chromium: apt-get install chromium, or set CHROMIUM to the program")
	}
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(),
		fmt.Sprintf("--window-size=%d,%d", width, height), "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, to: ourOut, from: bufio.NewReaderSize(ourIn, 1<<20)}
	// A browser that answers nothing is ended.
	watch := time.AfterFunc(100*time.Second, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		b.call("Browser.close", nil)
		cmd.Wait()
		watch.Stop()
		ourOut.Close()
		ourIn.Close()
	})
	var targets struct {
		TargetInfos []struct {
			TargetID string `json:"targetId"`
			Type     string `json:"type"`
		} `json:"targetInfos"`
	}
	b.into(&targets, "Target.getTargets", nil)
	for _, target := range targets.TargetInfos {
		if target.Type != "page" {
			continue
		}
		var attached struct {
			SessionID string `json:"sessionId"`
		}
		b.into(&attached, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})
		b.session = attached.SessionID
	}
	if b.session == "" {
		t.Fatal("the browser has no page")
	}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(domain+".enable", nil)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	b.call("Page.navigate", map[string]any{"url": "file://" + path})
	for deadline := time.Now().Add(30 * time.Second); b.eval("document.readyState") != "complete" ||
		b.eval("location.protocol") != "file:"; {
		if time.Now().After(deadline) {
			t.Fatal("the page did not load")
		}
	}
	return b
}

// call sends a command and returns its result; the test fails with the command's error.
func (b *browser) call(method string, params any) json.RawMessage {
	b.t.Helper()
	b.id++
	command := map[string]any{"id": b.id, "method": method}
	if params != nil {
		command["params"] = params
	}
	if b.session != "" && method != "Browser.close" {
		command["sessionId"] = b.session
	}
	text, err := json.Marshal(command)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		text, err := b.from.ReadBytes(0)
		if err != nil {
			b.t.Fatalf("%s: the browser is gone: %v", method, err)
		}
		var m message
		if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
			b.t.Fatal(err)
		}
		switch {
		case m.ID == 0:
			b.events = append(b.events, m)
		case m.ID == b.id && m.Error != nil:
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		case m.ID == b.id:
			return m.Result
		}
	}
}

func (b *browser) into(v any, method string, params any) {
	b.t.Helper()
	if err := json.Unmarshal(b.call(method, params), v); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
}

// eval gives the value of a JavaScript expression.
func (b *browser) eval(expression string) any {
	b.t.Helper()
	var out struct {
		Result struct {
			Value any `json:"value"`
		} `json:"result"`
		ExceptionDetails *struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	b.into(&out, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true})
	if e := out.ExceptionDetails; e != nil {
		b.t.Fatalf("%s: %s %s", expression, e.Text, e.Exception.Description)
	}
	return out.Result.Value
}

// texts is eval of an expression that is a list of strings.
func (b *browser) texts(expression string) (texts []string) {
	b.t.Helper()
	list, ok := b.eval(expression).([]any)
	if !ok {
		b.t.Fatalf("%s is no list", expression)
	}
	for _, v := range list {
		texts = append(texts, fmt.Sprint(v))
	}
	return texts
}

// press presses and releases a key.
func (b *browser) press(key, code string, virtual int) {
	b.t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		params := map[string]any{"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": virtual}
		if key == "Enter" && kind == "rawKeyDown" {
			params["type"], params["text"] = "keyDown", "\r"
		}
		b.call("Input.dispatchKeyEvent", params)
	}
}

// complaints are what the browser's console and log say, what the page threw, and what it asked the network for.
func (b *browser) complaints() (said []string) {
	b.eval("0") // what is under way has come after this answer
	for _, e := range b.events {
		switch e.Method {
		case "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded":
			said = append(said, e.Method+" "+string(e.Params))
		case "Network.requestWillBeSent":
			var sent struct {
				Request struct {
					URL string `json:"url"`
				} `json:"request"`
			}
			if err := json.Unmarshal(e.Params, &sent); err != nil {
				b.t.Fatal(err)
			}
			if url := sent.Request.URL; !strings.HasPrefix(url, "file://") || !strings.HasSuffix(url, ".html") {
				said = append(said, "request for "+url)
			}
		}
	}
	return said
}

// shot keeps a picture of the whole page where KVTUNE_SHOTS names a folder.
func (b *browser) shot(name string) {
	dir := os.Getenv("KVTUNE_SHOTS")
	if dir == "" {
		return
	}
	var out struct {
		Data string `json:"data"`
	}
	size := b.eval("[document.documentElement.clientWidth, Math.min(12000, " +
		"document.documentElement.scrollHeight)]").([]any)
	b.into(&out, "Page.captureScreenshot", map[string]any{"captureBeyondViewport": true,
		"clip": map[string]any{"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}})
	data, err := base64.StdEncoding.DecodeString(out.Data)
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, name+".png"), data, 0o644)); err != nil {
		b.t.Fatal(err)
	}
}
