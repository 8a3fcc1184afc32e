package vllm

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"time"

	"kvtune/harness/wire"
)

const (
	// idleConnTimeout closes idle connections before the server does (uvicorn under vLLM: 5 s), so that a request after a
	// pause does not meet a connection that is just being closed.
	idleConnTimeout = 4 * time.Second
	connectTimeout  = 30 * time.Second
)

// newHTTPClient makes connections that stay open from one request to the next and are as many as the requests in
// flight; where a server offers HTTP/2 (over TLS, by ALPN) they are as few as its limit of streams per connection
// allows; net/http's window of 1 GiB per connection keeps a stream that is not read yet from stopping the others. A
// certificate must be good by the system's roots. The proxy is the environment's.
func newHTTPClient(connect time.Duration) *http.Client {
	if connect <= 0 {
		connect = connectTimeout
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialStamped(&net.Dialer{Timeout: connect, KeepAlive: 15 * time.Second}),
		TLSHandshakeTimeout: connect,
		MaxIdleConns:        0, // no limit
		MaxIdleConnsPerHost: 1 << 16,
		IdleConnTimeout:     idleConnTimeout,
		DisableCompression:  true,
		Protocols:           protocols,
	}}
}

// dialStamped makes connections that know when bytes left and arrived.
func dialStamped(d *net.Dialer) func(ctx context.Context, network, address string) (net.Conn, error) {
	group := new(wire.Group)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return group.Stamp(conn), nil
	}
}

// exchange is a request and its answer on a connection.
type exchange struct {
	conn    *wire.Conn // nil where others share the connection (HTTP/2), or it is not ours
	asked   time.Time  // for a connection
	got     time.Time  // the connection; zero as long as there is none
	connect time.Duration
}

// trace notes what becomes of the request of ctx.
func (x *exchange) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { x.asked = time.Now() },
		// Once more where net/http takes another connection, since the first had been closed before a byte was written.
		GotConn: func(info httptrace.GotConnInfo) {
			x.got = time.Now()
			if !info.Reused {
				x.connect = x.got.Sub(x.asked)
			}
			conn := info.Conn
			if over, ok := conn.(*tls.Conn); ok && over.ConnectionState().NegotiatedProtocol != "h2" {
				conn = over.NetConn()
			}
			if x.conn, _ = conn.(*wire.Conn); x.conn != nil {
				x.conn.Begin()
			}
		},
	})
}

// sent is when the request's first byte went out, or as near as can be told; false where none did.
func (x *exchange) sent() (at time.Time, ok bool) {
	if x.conn != nil {
		if at, ok = x.conn.Wrote(); ok {
			return at, true
		}
	}
	return x.got, !x.got.IsZero()
}

// arrived is when what was read last had come.
func (x *exchange) arrived() time.Time {
	if x.conn == nil {
		return time.Now()
	}
	return x.conn.Received()
}
