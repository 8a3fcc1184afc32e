package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ReadConfigs reads a list of configurations from JSON: an array of [Config], or an object {"configs": [...]}. A field
// that is left out has the value of base; an unknown field is an error that names it. A configuration without a name
// gets "config-1", "config-2", ... by its place. Names must differ, because files are named after them. Every
// configuration is validated.
func ReadConfigs(r io.Reader, base Config) ([]Config, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var list []json.RawMessage
	switch trimmed := bytes.TrimSpace(data); {
	case len(trimmed) == 0:
		return nil, errors.New(`configs: empty: expected [{"C": 512, ...}, ...]`)
	case trimmed[0] == '{':
		var wrapped struct {
			Configs *[]json.RawMessage `json:"configs"`
		}
		if err := strict(trimmed, &wrapped); err != nil {
			return nil, fmt.Errorf("configs: %w", err)
		}
		if wrapped.Configs == nil {
			return nil, errors.New(`configs: no "configs" in the object: expected {"configs": [...]} or an array`)
		}
		list = *wrapped.Configs
	default:
		if err := strict(trimmed, &list); err != nil {
			return nil, fmt.Errorf("configs: %w", err)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("configs: no configuration in the list: expected at least one")
	}
	configs := make([]Config, len(list))
	seen := make(map[string]int)
	for i, raw := range list {
		c := base
		c.Name = ""
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			return nil, fmt.Errorf("configs[%d] is null: expected an object", i)
		}
		if err := strict(raw, &c); err != nil {
			return nil, fmt.Errorf("configs[%d]: %w", i, err)
		}
		if c.Name == "" {
			c.Name = fmt.Sprintf("config-%d", i+1)
		}
		if err := c.Validate(); err != nil {
			return nil, fmt.Errorf("configs[%d] (%s): %w", i, c.Name, err)
		}
		// File systems may not tell cases apart.
		if first, ok := seen[strings.ToLower(c.Name)]; ok {
			return nil, fmt.Errorf("configs[%d]: %w", i, &FieldError{Field: "name", Value: c.Name,
				Allowed: fmt.Sprintf("a name that differs from configs[%d]'s", first)})
		}
		seen[strings.ToLower(c.Name)] = i
		configs[i] = c
	}
	return configs, nil
}

// strict decodes one JSON value and nothing behind it, refusing unknown fields.
func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return &FieldError{Field: wrong.Field, Value: "a " + wrong.Value, Allowed: "a " + wrong.Type.String()}
		}
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return &FieldError{Field: strings.Trim(field, `"`), Value: "unknown", Allowed: "the names of a configuration " +
				"(C, M, B, block_size, max_num_batched_tokens, ...)"}
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("the JSON ends in the middle")
		}
		return fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more text behind the JSON")
	}
	return nil
}
