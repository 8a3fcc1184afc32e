package bench

import (
	"fmt"

	"kvtune/kernels"
	"kvtune/kernels/ref"
)

// spots is how many places are looked at of what a case leaves that is too large to be computed whole by the reference.
const spots = 16

// check runs every choice of a case once and compares all that it leaves with the reference.
func (r *runner) check(c kernels.Case) error {
	in, err := kernels.NewInputs(c)
	if err != nil {
		return err
	}
	k, err := r.Backend.Load(in)
	if err != nil {
		return err
	}
	defer k.Close()
	want, err := ref.Output(in)
	if err != nil {
		return err
	}
	t, ok := k.(kernels.Tunable)
	if !ok {
		return r.compare(k, c, want)
	}
	for _, choice := range t.Choices() {
		if err := t.Choose(choice); err != nil {
			return err
		}
		if err := r.compare(k, c, want); err != nil {
			return fmt.Errorf("choice %q: %w", choice, err)
		}
	}
	return nil
}

// compare runs a loaded case once and compares all that it leaves.
func (r *runner) compare(k kernels.Kernel, c kernels.Case, want kernels.Output) error {
	if err := k.Run(1); err != nil {
		return fmt.Errorf("case %s: %w", c.Name(), err)
	}
	got, err := k.Output()
	if err != nil {
		return err
	}
	return r.against(c.Check(got, want))
}

// spot launches a loaded case once and compares places of what it leaves with the reference.
func (r *runner) spot(k kernels.Kernel, in *kernels.Inputs) error {
	if err := k.Run(1); err != nil {
		return fmt.Errorf("case %s: %w", in.Case.Name(), err)
	}
	got, err := k.Output()
	if err != nil {
		return err
	}
	return r.against(ref.Spot(in, got, spots))
}

func (r *runner) against(err error) error {
	if err != nil {
		return fmt.Errorf("%s backend against the reference: %w", r.Backend.Name(), err)
	}
	return nil
}
