package sim

import "testing"

func TestSmoke(t *testing.T) {
	s, err := New(Config{MaxNumBatchedTokens: 2048, MaxNumSeqs: 128, BlockSize: 64, NumGPUBlocks: 80, MaxModelLen: 4096,
		EnableChunkedPrefill: true, EnablePrefixCaching: true, ReserveFullISL: true, StreamInterval: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		if err := s.Add(Request{ID: i, PromptTokens: 60, MaxTokens: 400}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for s.Running()+s.Waiting() > 0 {
		n += len(s.Update(s.Schedule()))
	}
	if n != 6400 || s.FreeBlocks() != 79 {
		t.Fatal(n, s.FreeBlocks())
	}
	if s.Stats().Preemptions != 7 {
		t.Fatal(s.Stats())
	}
}
