"""The command ressl-train, from a checkout of the repository."""

from ressl_keras.commands.train import main

if __name__ == "__main__":
    main()
