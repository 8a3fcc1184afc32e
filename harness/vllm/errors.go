package vllm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// UnreachableError says that nothing answered at an address.
type UnreachableError struct {
	URL string
	Err error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no server answers at %s: %v; start one (vllm serve MODEL), or check host, port and https in the "+
		"URL", e.URL, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// NotVLLMError says that something answered, and why it is not a vLLM server.
type NotVLLMError struct {
	URL string
	// Why says what was asked and what came instead.
	Why string
	Err error
}

func (e *NotVLLMError) Error() string {
	return fmt.Sprintf("%s is not a vLLM server: %s; give the address at which vllm serve listens, "+
		"not a gateway or another engine", e.URL, e.Why)
}

func (e *NotVLLMError) Unwrap() error { return e.Err }

// APIError is a server's refusal: a status other than 200, or an error object inside a stream that began with 200.
type APIError struct {
	// Status is the HTTP status, or the code of the error object inside a stream; 0 when that had none.
	Status int
	// InStream is set when the error came after the stream had begun.
	InStream bool
	// Message, Type and Param are the error object's ("param" names the field at fault); Message is the body's
	// beginning where the body is not an error object.
	Message, Type, Param string
	// Wait is the server's Retry-After, 0 when it gave none.
	Wait time.Duration
}

// RetryAfter reports whether the same request may be answered later, and when the server wants to see it again: for the
// statuses 429, 502, 503 and 504 before the stream has begun.
func (e *APIError) RetryAfter() (wait time.Duration, ok bool) {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return e.Wait, !e.InStream
	}
	return 0, false
}

// hideKey takes the API key out of what a server, or a gateway before it, said: errors go into logs and archives.
func (s *Server) hideKey(err error) error {
	if err == nil || s.key == "" || !strings.Contains(err.Error(), s.key) {
		return err
	}
	hide := func(text string) string { return strings.ReplaceAll(text, s.key, "[API key]") }
	var api *APIError
	if !errors.As(err, &api) {
		return errors.New(hide(err.Error()))
	}
	hidden := *api
	hidden.Message, hidden.Type, hidden.Param = hide(api.Message), hide(api.Type), hide(api.Param)
	return &hidden
}

// retryAfter reads a Retry-After header (RFC 9110, section 10.2.3): seconds or a date; 0 where it is neither, or past.
func retryAfter(value string) time.Duration {
	if n, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(max(n, 0), 86400)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// TooLong reports whether the prompt, or prompt and output together, exceed the server's context.
func (e *APIError) TooLong() bool {
	return e.Status == http.StatusBadRequest &&
		(e.Param == "input_tokens" || strings.Contains(e.Message, "maximum context length") ||
			strings.Contains(e.Message, "greater than max_model_len") ||
			strings.Contains(e.Message, "max_tokens must be at least 1, got")) // a prompt of exactly max_model_len
}

// Error begins with what went wrong in kvtune's words and ends with the server's own sentence.
func (e *APIError) Error() string {
	what := "the server refused the request"
	switch {
	case e.TooLong():
		what = "prompt too long for the server's max_model_len"
	case e.InStream:
		what = "the server reported an error inside the stream"
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		what = "the server wants a valid API key"
	case e.Status == http.StatusNotFound && strings.Contains(e.Message, "does not exist"):
		what = "the server does not serve this model"
	case e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable:
		what = "the server is too busy"
	case e.Status >= 500:
		what = "the server failed"
	}
	status := ""
	if e.Status != 0 {
		status = fmt.Sprintf(" (status %d)", e.Status)
	}
	if e.Message == "" {
		return what + status
	}
	return what + status + ": " + e.Message
}

// maxErrorText bounds how much of a body that is no error object is kept.
const maxErrorText = 2048

// parseAPIError reads the three forms of vLLM and its HTTP framework: {"error":{...}}, the older flat
// {"object":"error","message":...}, and {"detail":...}; anything else is kept as text.
func parseAPIError(status int, body []byte) *APIError {
	e := &APIError{Status: status}
	var doc struct {
		Error   json.RawMessage `json:"error"`
		Detail  json.RawMessage `json:"detail"`
		Object  string          `json:"object"`
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Param   string          `json:"param"`
	}
	if json.Unmarshal(body, &doc) == nil {
		switch {
		case len(doc.Error) > 0 && string(doc.Error) != "null":
			return parseErrorObject(status, doc.Error)
		case doc.Message != "":
			e.Message, e.Type, e.Param = doc.Message, doc.Type, doc.Param
			return e
		case len(doc.Detail) > 0:
			e.Message = text(doc.Detail)
			return e
		}
	}
	e.Message = strings.ToValidUTF8(string(body[:min(len(body), maxErrorText)]), "?")
	e.Message = strings.Join(strings.Fields(e.Message), " ")
	return e
}

// parseErrorObject reads what stands under "error": an object, or a bare string.
func parseErrorObject(status int, raw json.RawMessage) *APIError {
	e := &APIError{Status: status}
	var obj struct {
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Param   string          `json:"param"`
		Code    json.RawMessage `json:"code"`
	}
	if json.Unmarshal(raw, &obj) != nil {
		e.Message = text(raw)
		return e
	}
	e.Message, e.Type, e.Param = obj.Message, obj.Type, obj.Param
	if e.Message == "" {
		e.Message = text(raw)
	}
	if status == 0 {
		_ = json.Unmarshal(obj.Code, &e.Status) // a code that is no number leaves the status unknown
	}
	return e
}

// text is a JSON string's content, or the JSON itself, cut to a readable length.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		s = string(raw)
	}
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + " ..."
	}
	return s
}
