"""The test files that hold kernels to the cases, and so are repeated for every back end."""

PARITY_FILES = (
    "test_aspp_parity.py",
    "test_decoder_values.py",
    "test_depthwise_parity.py",
    "test_depthwise_fused.py",
    "test_depthwise_storage.py",
    "test_depthwise_values.py",
    "test_norm_parity.py",
    "test_norm_values.py",
    "test_separable_parity.py",
    "test_separable_values.py",
    "test_upsample_parity.py",
    "test_upsample_values.py",
)
