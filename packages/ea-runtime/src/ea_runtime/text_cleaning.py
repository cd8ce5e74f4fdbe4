from ea_runtime.errors import UserError
MAX_PROMPT_BYTES=16384
def check_prompt(p): pass
def clean_caption(c): return c.lower().strip()
