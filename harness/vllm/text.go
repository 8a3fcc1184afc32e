package vllm

import (
	"strings"

	"kvtune/harness/workload"
)

// words are common English words: with the blank before it each is one token of the usual byte-pair vocabularies.
const words = "the of and to in is that it was for on are as with his they at be this from have or by one had " +
	"not but what all were when we there can an your which their said if do will each about how up out them then she " +
	"many some so these would other into has more her two like him see time could no make than first been its who now " +
	"people my made over did down only way find use may water long little very after words called just where most " +
	"know get through back much before go good new write our used me man too any day same right look think also around " +
	"another came come work three word must because does part even place well such here take why things help put years " +
	"different away again off went old number great tell men say small every found still between name should home big " +
	"give air line set own under read last never us left end along while might next sound below saw something thought " +
	"both few those always looked show large often together asked house world going want school important until form " +
	"food keep children feet land side without boy once animals life enough took sometimes four head above kind began " +
	"almost live page got earth need far hand high year mother light parts country father let night following picture " +
	"being study second eyes soon times story boys since white days ever paper hard near sentence better best across"

// wordList are the words, each with its blank.
func wordList() []string {
	list := strings.Fields(words)
	for i, w := range list {
		list[i] = " " + w
	}
	return list
}

// appendText appends a segment to the inside of a JSON string: what was generated, if it was, else a word for every
// token, the same ones wherever the segment's ID appears.
func (c *Client) appendText(b []byte, seg workload.Segment, known *output) []byte {
	if known != nil && len(known.text) > 0 {
		return append(b, known.text...)
	}
	const low = 16 // where workload.Tokens begins
	for _, id := range workload.Tokens(seg, 0, low+len(c.words), nil) {
		b = append(b, c.words[id-low]...)
	}
	return b
}
