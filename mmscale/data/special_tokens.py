"""The five tokens that are no text. Every tokenizer of ours begins with them."""

# Order is the id: never reorder, only append.
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|answer|>", "<|embed|>", "<|mask|>")
PAD, END, ANSWER, EMBED, MASK = range(len(SPECIAL_TOKENS))
