"""Publishes an export on the Hugging Face Hub.

    python examples/push_to_hub.py --export out --repo_id org/carl-roberta --dry_run
    python examples/push_to_hub.py --export out --repo_id org/carl-roberta --private
    python examples/push_to_hub.py --export out --repo_id org/carl-roberta-va --head va
    python examples/push_to_hub.py --export out --repo_id org/carl-roberta-emotion --head emotion --pull_request

The repository then holds exactly the export. The token is taken from HF_TOKEN or `hf auth login`.
"""

from collections.abc import Sequence

from carl_hf import push_export
from carl_hf.commands.arguments import parse_script_arguments
from carl_hf.commands.outputs import errors_in_one_line
from carl_hf.commands.push import PushArguments, print_push


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script_arguments(PushArguments, argv, description=__doc__)
    push = push_export(
        args.folder(), args.repo_id, private=args.private or (False if args.public else None), branch=args.branch,
        pull_request=args.pull_request, commit_message=args.message, dry_run=args.dry_run,
    )  # fmt: skip
    print_push(push, dry_run=args.dry_run)


if __name__ == "__main__":
    main()
