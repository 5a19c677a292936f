// FiftyOne has no operator of its own that opens a page; Python asks for this one. If the browser blocks it, the link
// that the operator shows remains.
(({ Operator, OperatorConfig, registerOperator }) => {
  class OpenUrl extends Operator {
    get config() {
      return new OperatorConfig({ name: "open_url", label: "Open a page", unlisted: true });
    }
    async execute({ params }) {
      window.open(params.url, "_blank", "noopener");
    }
  }
  registerOperator(OpenUrl, "@codetr_lab/label_assignment");
})(window.__foo__);
