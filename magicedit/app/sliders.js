// The sliders and the button "Edit" as one component: Gradio reads and updates each component that an event names,
// which takes longer than the event. Runs once in its gr.HTML, which gives `trigger`.

const IN_SLIDER = '#sliders .me-unit input';

document.addEventListener('input', event => event.target.closest(IN_SLIDER) && trigger('input'));
for (const name of ['pointerup', 'focusout']) document.addEventListener(name, event => {
    const field = event.target.closest?.(IN_SLIDER);
    if (field && (name === 'pointerup' || field.type === 'number')) trigger('release');
});
document.addEventListener('click', event => event.target.closest('#edit') && trigger('release'));
