package spec

import "slices"

const tera = 1e12

func gib(n float64) int64 { return int64(n * (1 << 30)) }

// GPUs is the table of known devices, largest memory first. Bandwidth and flop rates are from the named datasheet,
// dense (datasheets often print the sparse figure, twice as high) with 32-bit accumulation. Memory is the total that
// PyTorch prints on the part in its out-of-memory message, to 0.1 GiB; driver versions move it by that much.
func GPUs() []GPU {
	return []GPU{
		{
			Name: "H200", SMs: 132, Memory: gib(139.8), Bandwidth: 4.8 * tera, BF16: 989.5 * tera, FP8: 1979 * tera,
			Link:    450e9,
			Source:  "NVIDIA H200 Tensor Core GPU datasheet (SXM)",
			aliases: []string{"h200sxm", "h200141gb", "h200nvl", "h200sxm141gb"},
		},
		{
			Name: "RTX-PRO-6000", SMs: 188, Memory: gib(94.97), Bandwidth: 1.792 * tera, BF16: 503.8 * tera, FP8: 1007.6 * tera,
			Link:   64e9,
			Source: "NVIDIA RTX Blackwell PRO GPU architecture whitepaper (workstation edition)",
			aliases: []string{
				"rtxpro6000blackwell", "rtxpro6000blackwellworkstationedition", "rtxpro6000blackwellserveredition",
			},
		},
		{
			Name: "A100-80GB", SMs: 108, Memory: gib(79.25), Bandwidth: 2.039 * tera, BF16: 312 * tera,
			Link:    300e9,
			Source:  "NVIDIA A100 Tensor Core GPU datasheet (80GB SXM)",
			aliases: []string{"a100", "a100sxm", "a100sxm80gb", "a100sxm480gb", "a10080gbpcie", "a100pcie80gb"},
		},
		{
			Name: "H100-SXM", SMs: 132, Memory: gib(79.1), Bandwidth: 3.35 * tera, BF16: 989.5 * tera, FP8: 1979 * tera,
			Link:    450e9,
			Source:  "NVIDIA H100 Tensor Core GPU datasheet (SXM)",
			aliases: []string{"h100", "h10080gb", "h10080gbhbm3", "h100sxm5", "h100sxm80gb", "h100sxm580gb"},
		},
		{
			Name: "H100-PCIe", SMs: 114, Memory: gib(79.1), Bandwidth: 2.0 * tera, BF16: 756.5 * tera, FP8: 1513 * tera,
			Link:    64e9,
			Source:  "NVIDIA H100 PCIe GPU product brief PB-11133",
			aliases: []string{"h10080gbpcie", "h100pcie80gb"},
		},
		{
			Name: "L40S", SMs: 142, Memory: gib(44.4), Bandwidth: 0.864 * tera, BF16: 362.05 * tera, FP8: 733 * tera,
			Link:   32e9,
			Source: "NVIDIA L40S GPU datasheet", aliases: []string{"l40s48gb"},
		},
		{
			Name: "A100-40GB", SMs: 108, Memory: gib(39.4), Bandwidth: 1.555 * tera, BF16: 312 * tera,
			Link:    300e9,
			Source:  "NVIDIA A100 Tensor Core GPU datasheet (40GB SXM)",
			aliases: []string{"a100sxm40gb", "a100sxm440gb", "a10040gbpcie", "a100pcie40gb"},
		},
		{
			Name: "RTX-4090", SMs: 128, Memory: gib(23.55), Bandwidth: 1.008 * tera, BF16: 165.2 * tera, FP8: 330.3 * tera,
			Link:    32e9,
			Source:  "NVIDIA Ada GPU architecture whitepaper, appendix A",
			aliases: []string{"4090", "geforcertx4090", "rtx409024gb"},
		},
		{
			Name: "L4", SMs: 58, Memory: gib(22.05), Bandwidth: 0.3 * tera, BF16: 121 * tera, FP8: 242.5 * tera,
			Link:   32e9,
			Source: "NVIDIA L4 Tensor Core GPU datasheet", aliases: []string{"l424gb"},
		},
		{
			// vLLM on its CPU platform. Processors differ too much for a datasheet: it is a start for a fit, nothing more.
			Name: "CPU", CPU: true, Memory: gib(4), Bandwidth: 0.04 * tera, BF16: 0.5 * tera,
			Link:   0.04 * tera,
			Source: "order of magnitude of two server cores with AVX-512 BF16; not a datasheet",
		},
	}
}

// FindGPU finds a device by name; case, spaces, "-", "_" and a leading "NVIDIA" do not matter, so the driver's names
// ("NVIDIA H100 80GB HBM3") are understood. The error for an unknown name lists the nearest ones.
func FindGPU(name string) (GPU, error) {
	want := key(name)
	var names []string
	for _, g := range GPUs() {
		if want != "" && (want == key(g.Name) || slices.Contains(g.aliases, want)) {
			return g, nil
		}
		names = append(names, g.Name)
	}
	return GPU{}, unknown("gpu", name, names, "give one of these")
}
