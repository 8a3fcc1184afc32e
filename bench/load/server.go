package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvtune/harness/vllm"
	"kvtune/harness/wire"
)

// server answers every completion with the same events, on time and without looking at the prompt: what a client
// measures beside that is the client. It speaks enough of vLLM's API for every client here.
type server struct {
	ttft, itl time.Duration
	batch     int // events a write

	group wire.Group

	mu     sync.Mutex
	stamps []stamp // in memory until the end: a write for each would delay what it times
}

// stamp is what the server knows of a request: how long after its arrival its first token was written.
type stamp struct {
	model string
	after time.Duration
}

func serve(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	s := &server{stamps: make([]stamp, 0, 1<<14)}
	addr := fs.String("listen", "127.0.0.1:8765", "")
	fs.DurationVar(&s.ttft, "ttft", 50*time.Millisecond, "from a request to its first token")
	fs.DurationVar(&s.itl, "itl", 20*time.Millisecond, "from a token to the next; 0 is as fast as it can")
	fs.IntVar(&s.batch, "batch", 1, "events a write")
	file := fs.String("stamps", "", "file for a line per request: its model, and the seconds to its first token")
	if err := fs.Parse(args); err != nil {
		return err
	}
	vllm.ReserveConnections(cap(s.stamps))
	debug.SetGCPercent(-1) // it lives for one run, and a collection would make it late
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unixTerm)
	defer stop()
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	if err := s.accept(l); err != nil {
		return err
	}
	return s.save(*file)
}

// accept answers the connections to l until it is closed.
func (s *server) accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go s.connection(c)
	}
}

// connection answers the requests of one connection. net/http's server would do, but costs more per write than there is
// in it.
func (s *server) connection(conn net.Conn) {
	c := s.group.Stamp(conn)
	defer c.Close()
	r := bufio.NewReaderSize(c, 2048)
	var body bytes.Buffer
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body.Reset()
		if _, err := body.ReadFrom(req.Body); err != nil {
			return
		}
		if strings.HasSuffix(req.URL.Path, "/completions") {
			err = s.complete(c, body.Bytes(), strings.Contains(req.URL.Path, "chat"))
		} else {
			err = page(c, req.URL.Path)
		}
		if err != nil {
			return
		}
	}
}

// page answers what clients ask before they begin.
func page(w io.Writer, path string) error {
	status, text, kind := "200 OK", "", "application/json"
	switch path {
	case "/health", "/":
	case "/v1/models":
		text = `{"object":"list","data":[{"id":"static","object":"model","root":"static","parent":null,` +
			`"max_model_len":1000000}]}`
	case "/version":
		text = `{"version":"0.32.0"}`
	case "/metrics":
		kind = "text/plain; version=0.0.4"
		text = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"static\"} 0\n"
	default: // some ask for /tokenize, and go on without
		status, text = "404 Not Found", `{"detail":"Not Found"}`
	}
	_, err := fmt.Fprintf(w, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", status, kind, len(text),
		text)
	return err
}

// field finds a number or string behind "key": in JSON of one level.
func field(body []byte, key string) string {
	i := bytes.Index(body, []byte(`"`+key+`"`))
	if i < 0 {
		return ""
	}
	rest := bytes.TrimLeft(body[i+len(key)+2:], ": \t\"")
	end := bytes.IndexAny(rest, `",} `)
	if end < 0 {
		return ""
	}
	return string(rest[:end])
}

const (
	completionEvent = `data: {"id":"cmpl-2f5f9f0b8f6c4d6a","object":"text_completion","created":1790000000,` +
		`"model":"static","choices":[{"index":0,"text":" the","logprobs":null,"finish_reason":%s,"stop_reason":null,` +
		`"prompt_token_ids":null,"token_ids":%s}]}` + "\n\n"
	chatEvent = `data: {"id":"chatcmpl-2f5f9f0b8f6c4d6a","object":"chat.completion.chunk","created":1790000000,` +
		`"model":"static","choices":[{"index":0,"delta":{"content":" the"},"logprobs":null,"finish_reason":%s,` +
		`"token_ids":%s}]}` + "\n\n"
	endEvents = `data: {"id":"cmpl-2f5f9f0b8f6c4d6a","object":"text_completion","created":1790000000,"model":"static",` +
		`"choices":[],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}` + "\n\ndata: [DONE]\n\n"
	streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)

// chunked is one chunk of HTTP's chunked coding.
func chunked(text string) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(text), text) }

func (s *server) complete(w *wire.Conn, body []byte, chat bool) error {
	arrived := w.Received() // however late it was read
	tokens := 16
	for _, key := range []string{"max_tokens", "max_completion_tokens"} {
		if n, err := strconv.Atoi(field(body, key)); err == nil {
			tokens = n
			break
		}
	}
	name, form, ids := field(body, "model"), completionEvent, "null"
	if chat {
		form = chatEvent
	}
	if field(body, "return_token_ids") == "true" {
		ids = "[1023]"
	}
	event := fmt.Sprintf(form, "null", ids)
	batch := ""
	for range s.batch {
		batch += event
	}
	one, many := chunked(event), chunked(batch)
	end := fmt.Sprintf(form, `"length"`, ids) + fmt.Sprintf(endEvents, 16, 16+tokens, tokens)
	last := append(chunked(end), "0\r\n\r\n"...)
	if _, err := io.WriteString(w, streamHead); err != nil {
		return err
	}
	due := arrived.Add(s.ttft)
	for sent := 0; sent < tokens; {
		if s.itl > 0 || sent == 0 {
			time.Sleep(time.Until(due))
			due = due.Add(s.itl)
		}
		write, n := one, 1
		switch left := tokens - sent; {
		case left == 1:
			write = last
		case sent > 0 && s.batch > 1 && left > s.batch:
			write, n = many, s.batch
		}
		if sent == 0 {
			s.note(stamp{name, time.Since(arrived)})
		}
		if _, err := w.Write(write); err != nil {
			return err
		}
		sent += n
	}
	return nil
}

// note keeps a request's stamp.
func (s *server) note(st stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamps = append(s.stamps, st)
}

// save writes the stamps, in the order of first tokens; "" is no file.
func (s *server) save(file string) error {
	if file == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var text []byte
	for _, st := range s.stamps {
		text = fmt.Appendf(text, "%s %.6f\n", st.model, st.after.Seconds())
	}
	return os.WriteFile(file, text, 0o644)
}
