"""`python -m carl_hf NAME ...` is the command `carl-hf NAME ...`.

`accelerate launch -m carl_hf pretrain ...` trains on several devices.
"""

from carl_hf_cli import main

if __name__ == "__main__":
    main()
