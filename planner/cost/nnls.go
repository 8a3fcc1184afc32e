package cost

import (
	"errors"

	"gonum.org/v1/gonum/mat"
)

// gram holds the normal equations of a weighted least-squares problem: a = A'WA, b = A'Wy.
type gram struct {
	n    int
	a, b []float64
}

func newGram(n int) *gram { return &gram{n: n, a: make([]float64, n*n), b: make([]float64, n)} }

// add adds one row of the problem: row . x = y with weight w.
func (g *gram) add(row []float64, y, w float64) {
	for i, r := range row {
		if r == 0 {
			continue
		}
		g.b[i] += w * r * y
		for j, q := range row {
			g.a[i*g.n+j] += w * r * q
		}
	}
}

// diagonal adds the row x_j = y with weight w.
func (g *gram) diagonal(j int, y, w float64) {
	g.a[j*g.n+j] += w
	g.b[j] += w * y
}

// solve minimises x'ax/2 - b'x over x >= 0 by the active-set method of Lawson and Hanson (Solving Least Squares
// Problems, 1974, chapter 23), on the normal equations. The matrix must be positive definite.
func (g *gram) solve() ([]float64, error) {
	x := make([]float64, g.n)
	free := make([]bool, g.n)
	const tolerance = 1e-9
	for range 10 * g.n {
		// The gradient says which of the bound variables wants to grow most.
		next, steepest := -1, tolerance
		for j := range g.n {
			if free[j] {
				continue
			}
			if grow := (g.b[j] - dot(g.a[j*g.n:(j+1)*g.n], x)) / (1 + g.a[j*g.n+j]); grow > steepest {
				next, steepest = j, grow
			}
		}
		if next < 0 {
			return x, nil
		}
		free[next] = true
		for {
			z, err := g.unconstrained(free)
			if err != nil {
				return nil, err
			}
			// Walk towards z until a free variable hits zero; bind it and try again.
			step, hit := 1.0, false
			for j := range g.n {
				if free[j] && z[j] <= 0 {
					hit = true
					step = min(step, x[j]/(x[j]-z[j]))
				}
			}
			for j := range g.n {
				if free[j] {
					if x[j] += step * (z[j] - x[j]); hit && x[j] <= tolerance*tolerance {
						x[j], free[j] = 0, false
					}
				}
			}
			if !hit {
				break
			}
		}
	}
	return nil, errors.New("the fit did not converge; the observations contradict each other")
}

// unconstrained solves for the free variables, the others being zero.
func (g *gram) unconstrained(free []bool) ([]float64, error) {
	var index []int
	for j, f := range free {
		if f {
			index = append(index, j)
		}
	}
	sub := mat.NewSymDense(len(index), nil)
	rhs := mat.NewVecDense(len(index), nil)
	for p, i := range index {
		rhs.SetVec(p, g.b[i])
		for q := p; q < len(index); q++ {
			sub.SetSym(p, q, g.a[i*g.n+index[q]])
		}
	}
	var chol mat.Cholesky
	if !chol.Factorize(sub) {
		return nil, errors.New("the fit is singular: an observation is not a finite number")
	}
	var z mat.VecDense
	if err := chol.SolveVecTo(&z, rhs); err != nil {
		return nil, err
	}
	out := make([]float64, g.n)
	for p, i := range index {
		out[i] = z.AtVec(p)
	}
	return out, nil
}
