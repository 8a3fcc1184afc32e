package vllm

import (
	"net"
	"net/http"
	"time"
)

const (
	// idleConnTimeout closes idle connections before the server does (uvicorn under vLLM: 5 s), so that a request after a
	// pause does not meet a connection that is just being closed.
	idleConnTimeout = 4 * time.Second
	connectTimeout  = 30 * time.Second
)

// newHTTPClient makes connections that stay open from one request to the next and are as many as the requests in flight;
// where a server offers HTTP/2 (over TLS, by ALPN) they are as few as its limit of streams per connection allows; net/http's
// window of 1 GiB per connection keeps a stream that is not read yet from stopping the others. A certificate must be good by the system's roots. The proxy is the environment's.
func newHTTPClient(connect time.Duration) *http.Client {
	if connect <= 0 {
		connect = connectTimeout
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: connect, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: connect,
		MaxIdleConns:        0, // no limit
		MaxIdleConnsPerHost: 1 << 16,
		IdleConnTimeout:     idleConnTimeout,
		DisableCompression:  true,
		Protocols:           protocols,
	}}
}
