package layout

import (
	"encoding/binary"
	"fmt"
	"math"
)

// DType is how a number is coded, in little-endian order.
type DType uint8

const (
	// BF16 is the upper half of a float32: 8 bits of exponent, 7 of mantissa.
	BF16 DType = iota
	// FP16 is IEEE 754 binary16: 5 bits of exponent, 10 of mantissa.
	FP16
	// FP8 is E4M3 of the OCP 8-bit floating point specification 1.0: 4 bits of exponent (bias 7), 3 of mantissa, no
	// infinity, one NaN per sign (0x7f, 0xff), at most 448. Numbers beyond are saturated.
	FP8
)

// The codes of FP8's largest number, 448, and of NaN.
const (
	fp8Max = 0x7e
	fp8NaN = 0x7f
)

// DTypes lists every dtype.
func DTypes() []DType { return []DType{BF16, FP16, FP8} }

// String is the dtype's name: bf16, fp16 or fp8.
func (d DType) String() string {
	switch d {
	case BF16:
		return "bf16"
	case FP16:
		return "fp16"
	case FP8:
		return "fp8"
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// MarshalText writes the dtype's name.
func (d DType) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a dtype's name.
func (d *DType) UnmarshalText(text []byte) (err error) {
	*d, err = named("dtype", string(text), DTypes())
	return err
}

// Bytes is the size of one number.
func (d DType) Bytes() int {
	if d == FP8 {
		return 1
	}
	return 2
}

// Roundoff is the largest relative error of rounding a normal number: half the distance from 1 to the next number.
func (d DType) Roundoff() float64 {
	switch d {
	case FP16:
		return 1.0 / (1 << 11)
	case FP8:
		return 1.0 / (1 << 4)
	}
	return 1.0 / (1 << 8)
}

// Get is number i of an array.
func (d DType) Get(array []byte, i int) float32 {
	if d == FP8 {
		return d.Decode(uint16(array[i]))
	}
	return d.Decode(binary.LittleEndian.Uint16(array[2*i:]))
}

// Put sets number i of an array to v, rounded as [DType.Encode] does.
func (d DType) Put(array []byte, i int, v float32) { d.PutCodes(array, i, d.Encode(v)) }

// PutCodes sets the numbers of an array from number i on to codes.
func (d DType) PutCodes(array []byte, i int, codes ...uint16) {
	if d == FP8 {
		for j, code := range codes {
			array[i+j] = byte(code)
		}
		return
	}
	for j, code := range codes {
		binary.LittleEndian.PutUint16(array[2*(i+j):], code)
	}
}

// Decode is the number that a code stands for; it is exact, and NaN keeps its sign.
func (d DType) Decode(code uint16) float32 {
	switch d {
	case FP16:
		return decode(code, 5, 10, false)
	case FP8:
		return decode(code, 4, 3, true)
	}
	return math.Float32frombits(uint32(code) << 16)
}

// decode reads a code of one sign bit, the given bits of exponent and of mantissa. The largest exponent is infinity and
// NaN, as in IEEE 754, or with onlyNaN a number like others, save for the one code with a full mantissa, which is NaN.
func decode(code uint16, exponentBits, mantissaBits int, onlyNaN bool) float32 {
	bias, full := 1<<(exponentBits-1)-1, 1<<mantissaBits-1
	exponent, mantissa := int(code)>>mantissaBits&(1<<exponentBits-1), int(code)&full
	v := 0.0
	switch last := exponent == 1<<exponentBits-1; {
	case last && onlyNaN && mantissa == full, last && !onlyNaN && mantissa != 0:
		v = math.NaN()
	case last && !onlyNaN:
		v = math.Inf(1)
	case exponent == 0:
		v = math.Ldexp(float64(mantissa), 1-bias-mantissaBits)
	default:
		v = math.Ldexp(float64(full+1+mantissa), exponent-bias-mantissaBits)
	}
	if code>>(exponentBits+mantissaBits)&1 != 0 {
		v = math.Copysign(v, -1)
	}
	return float32(v)
}

// Encode is the code of the nearest number, of two equally near the one with an even code. BF16 and FP16 overflow to
// infinity as IEEE 754 says; FP8 saturates, infinity too. NaN stays NaN and keeps its sign.
func (d DType) Encode(v float32) uint16 {
	switch d {
	case FP16:
		return encode(v, 5, 10, 0x7c00, 0x7e00)
	case FP8:
		return encode(v, 4, 3, fp8Max, fp8NaN)
	}
	bits := math.Float32bits(v)
	if v != v {
		return uint16(bits>>16) | 0x40 // quiet, so that a NaN whose payload is cut off does not become infinity
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// encode rounds v to one sign bit and the given bits of exponent and mantissa. overflow is the code of what is too
// large, nan that of NaN.
func encode(v float32, exponentBits, mantissaBits int, overflow, nan uint16) uint16 {
	sign := uint16(math.Float32bits(v)>>31) << (exponentBits + mantissaBits)
	if v != v {
		return sign | nan
	}
	bias := 1<<(exponentBits-1) - 1
	magnitude := math.Abs(float64(v))
	if magnitude == 0 {
		return sign
	}
	// In units of the last place at v's exponent, or of the subnormal numbers below the smallest one. Go's float64
	// holds every such quotient, so that the only rounding is the one to an integer.
	exponent := max(math.Ilogb(magnitude), 1-bias)
	if math.IsInf(magnitude, 1) || exponent > bias+1 {
		return sign | overflow
	}
	units := int(math.RoundToEven(math.Ldexp(magnitude, mantissaBits-exponent)))
	code := units + (exponent+bias-1)<<mantissaBits
	return sign | uint16(min(code, int(overflow)))
}
