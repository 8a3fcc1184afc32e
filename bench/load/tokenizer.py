"""Makes a tokenizer of 4,000 words in the folder that is named: the other clients count prompts with one."""
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

vocabulary = {"[UNK]": 0, "[PAD]": 1, "[EOS]": 2} | {f"w{i}": 3 + i for i in range(4000)}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
).save_pretrained(sys.argv[1])
