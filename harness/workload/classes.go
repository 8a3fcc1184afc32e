package workload

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Class is a kind of traffic: a service class that an SLO may name, with vLLM's priority and an adapter.
type Class struct {
	Name string
	// Share is this class's part of all requests (conversations), relative to the others', above 0.
	Share float64
	// Priority is vLLM's: lower is sooner; used under the priority scheduling policy only.
	Priority int
	// LoRA is the adapter to ask for, "" for none.
	LoRA string
}

const classForm = "NAME=SHARE[/PRIORITY[/LORA]] with a share above 0, several with commas between: " +
	"chat=0.7,batch=0.3/10/sql"

// ParseClasses reads "chat=0.7,batch=0.3/10/sql-adapter": names, shares, priorities and adapters. "" is none.
func ParseClasses(text string) ([]Class, error) {
	var classes []Class
	seen := map[string]bool{}
	for _, part := range strings.Split(text, ",") {
		if strings.TrimSpace(text) == "" {
			return nil, nil
		}
		name, rest, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields := strings.SplitN(rest, "/", 3)
		share, err := strconv.ParseFloat(fields[0], 64)
		c := Class{Name: name, Share: share}
		if len(fields) > 1 && err == nil {
			c.Priority, err = strconv.Atoi(fields[1])
		}
		if len(fields) > 2 {
			c.LoRA = fields[2]
		}
		if err != nil || name == "" || seen[name] || !(share > 0 && share <= maxRate) {
			return nil, &FieldError{"classes", text, classForm}
		}
		seen[name] = true
		classes = append(classes, c)
	}
	return classes, nil
}

// streamClasses is a stream of random numbers of its own, so that classes leave lengths and arrivals as they are.
const streamClasses = 77

// Classify deals the measured and warm-up requests of a workload to classes at random by their shares; the turns of a
// conversation are one class. Requests that have a class already (a trace's) keep it. The same seed gives the same.
//
// An adapter has prefixes of its own in vLLM's cache: a shared prefix is primed for requests without one only.
func (w *Workload) Classify(classes []Class, seed uint64) {
	if len(classes) == 0 {
		return
	}
	d := newDealer(classes, seed)
	for i := range w.Requests {
		d.deal(&w.Requests[i])
	}
	w.Notes = append(w.Notes, d.notes()...)
}

// dealer gives requests their classes, one after the other.
type dealer struct {
	classes  []Class
	total    float64
	rng      *rand.Rand
	sessions map[string]*Class
	adapters bool // a request with an adapter has a prefix that was primed without
}

func newDealer(classes []Class, seed uint64) *dealer {
	d := &dealer{classes: classes, rng: rand.New(rand.NewPCG(seed, streamClasses)), sessions: map[string]*Class{}}
	for _, c := range classes {
		d.total += c.Share
	}
	return d
}

func (d *dealer) draw() *Class {
	x := d.rng.Float64() * d.total
	for i := range d.classes {
		if x -= d.classes[i].Share; x < 0 {
			return &d.classes[i]
		}
	}
	return &d.classes[len(d.classes)-1]
}

func (d *dealer) deal(r *Request) {
	if r.Phase == Prime || r.Class != "" {
		return
	}
	c, ok := d.sessions[r.Session]
	if !ok || r.Session == "" {
		c = d.draw()
		d.sessions[r.Session] = c
	}
	r.Class, r.Priority, r.LoRA = c.Name, c.Priority, c.LoRA
	d.adapters = d.adapters || c.LoRA != "" && r.SharedTokens > 0 && r.Turn == 0
}

func (d *dealer) notes() []string {
	if !d.adapters {
		return nil
	}
	return []string{fmt.Sprintf("the M blocks are primed without an adapter: requests of a class with one (%s) compute "+
		"them once more", classNames(d.classes))}
}

func classNames(classes []Class) string {
	var names []string
	for _, c := range classes {
		if c.LoRA != "" {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ")
}
