"""The architectures whose classes differ from the stock ones by name only, made by one call each.

For the stock class `GraniteForCausalLM` there is `DistillGraniteForCausalLM`, and so on. Those that the installed
Transformers does not have are left out.
"""

from distill.models.auto import register_architecture
from distill.models.contract import make_architecture

#: `model_type`s of the stock architectures
MODEL_TYPES = sys_types = """apertus arcee cohere cohere2 cwm deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo gemma gemma2
gemma3_text glm glm4 glm4_moe gpt_neox gpt_oss granite granitemoe granite_swa granitemoe_swa helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax jais2 laguna llama4_text mellum mimo_v2_flash
minimax_m2 minicpm3 ministral ministral3 mixtral nanochat nemotron olmo olmo2 olmo3 olmoe persimmon phi phimoe qwen2_moe qwen3_moe seed_oss
smollm3 solar_open stablelm starcoder2 vaultgemma afmoe bitnet doge youtu kolibri1 cohere2_moe longcat_flash gemma3n_text gemma4_text lfm2 qwen3_next jamba bamba deepseek_v2 internlm3 iquestcoder mistral qwen2 phi3""".split()
